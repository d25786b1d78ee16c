"""Writes the documents of the gallery with the bundled model; `make cases` runs this module.

Each text is written by the request that `gallery.toml` gives, through the same functions as in the server. So that the
gallery stays small, numbers have three digits, fewer input tokens are listed, and the further texts of a comparison
have concepts alone; a trace is exact.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.attribution.explorer import gallery
from steerling_jax.attribution.explorer.asking import parse_text
from steerling_jax.attribution.explorer.panels import cost_panel
from steerling_jax.attribution.explorer.texts import Model
from steerling_jax.attribution.explorer.training_data import EvidenceSearch, open_training_data
from steerling_jax.attribution.index.evidence import SCORES
from steerling_jax.attribution.trace.document import make_document
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.trace.parts import complete_document
from steerling_jax.bundle import Bundle
from steerling_jax.cli.console import note
from steerling_jax.decoding.generation import generate
from steerling_jax.decoding.trace_record import TraceRecord
from steerling_jax.explain.given_text import given_trace
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.trace_file import model_origin
from steerling_jax.loading import load
from steerling_jax.progress import no_progress

CONCEPTS, _INPUTS = 4, 10  # listed for each kind, and input tokens for each target
_DIGITS, _CONSIDERED_DIGITS = 3, 2  # of numbers, and of the probabilities of candidates


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the documents of the explorer's gallery.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases to write (default: all)")
    parser.add_argument("--index", help="an index of the model, for the cases with training data (see case_sources)")
    parser.add_argument("--corpus", help="the corpus store of that index")
    args = parser.parse_args()
    bundle, find = load(), None
    if args.index is not None:
        find = open_training_data(args.index, args.corpus, bundle).search
    folder = Path(__file__).parent / "cases"
    folder.mkdir(exist_ok=True)
    cases = {case["name"]: case for case in gallery.descriptions()}
    for name in args.names or cases:
        case = cases[name]
        if case.get("training_data") and find is None:
            note(f"{name}: not written, since it has training data; give --index and --corpus")
            continue
        documents = {"text": make_case(bundle, case["request"], find if case.get("training_data") else None)}
        for other in case.get("compare", ()):
            documents[other["name"]] = make_case(bundle, other["request"], None, whole=False)
        content = json.dumps(documents, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        with atomic_path(folder / f"{name}.json") as target:
            target.write_text(content + "\n", encoding="utf-8")
        note(f"{name}: {len(content.encode())} bytes")


def make_case(
    bundle: Bundle, request: Mapping[str, Any], find: EvidenceSearch | None, *, whole: bool = True
) -> dict[str, Any]:
    """The document of a text that is written as the request says. whole: with inputs, cards and steps."""
    record = write_case(bundle, request)
    search = None
    if find is not None:
        search = lambda ids, start, end: find(ids, start, end, SCORES)  # noqa: E731
    explanation = explain(bundle, record, inputs=whole, find_evidence=search)
    document = complete_document(bundle, explanation, CONCEPTS) if whole else make_document(explanation, CONCEPTS)
    document["cost"] = cost_panel(bundle, record, no_progress)
    return compact(document)


def write_case(bundle: Bundle, request: Mapping[str, Any]) -> TraceRecord:
    """The record of a text that is written, or read, as the request says."""
    model = Model(bundle, model_origin(bundle))
    text, continuation = parse_text(request, bundle, model.origin.fingerprint, None)
    ids, config = text.prompt.text_or_ids, text.prompt.config
    if continuation is not None:
        text.given = given_trace(bundle, ids, continuation)
    else:
        text.request = model.request(text)
        text.commits = list(generate(bundle, ids, config, text.request.steering).trace.commits)
    return model.record(text)


def compact(document: dict[str, Any]) -> dict[str, Any]:
    """The document with shorter numbers outside its trace, and fewer of the input tokens."""
    exact = ("trace", "pieces", "characters")
    short = {name: _short(value, _DIGITS) for name, value in document.items() if name not in exact}
    if "considered" in document:
        short["considered"] = _short(document["considered"], _CONSIDERED_DIGITS)
    for item in (*short["tokens"], *short["chunks"]):
        inputs = item.get("inputs")
        if inputs and len(inputs["positions"]) > _INPUTS:
            rest = inputs["rest"] + sum(inputs["attributions"][_INPUTS:])
            inputs |= {name: inputs[name][:_INPUTS] for name in ("positions", "attributions")}
            inputs["rest"] = _short(rest, _DIGITS)
    return document | short


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: _short(item, digits) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item, digits) for item in value]
    return value


if __name__ == "__main__":
    main()

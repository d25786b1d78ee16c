"""`steerling verify`: agrees with what was computed, and notices a changed value in every figure."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.attribution.index.evidence import Evidence, Hit
from steerling_jax.attribution.trace.document import make_document
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.verify.verification import verify
from steerling_jax.cli.main import main
from steerling_jax.decoding.trace_record import from_plain, record_of, to_plain
from steerling_jax.io.trace_file import model_origin

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def bundle(text_model: Path) -> sj.Bundle:
    return sj.load(text_model)


def find_evidence(tokens: np.ndarray, start: int, end: int) -> Evidence:
    hit = Hit("verbatim", 4.0, 7, 2, "a document", "docs", "0" * 64, 30, 34, 3, "a text", (start, start + 4))
    near = Hit("signature", 0.75, 9, 3, "another", "code", "1" * 64, 50, 60, 0, "its text", (start, end))
    thresholds = {"verbatim": 1.0, "signature": 0.5, "representation": 0.5}
    best = {"verbatim": 4.0, "signature": 0.75, "representation": 0.25}
    return Evidence(start, end, (hit, near), thresholds, best)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def document(bundle: sj.Bundle) -> dict[str, Any]:
    """Of a guided and steered text, as `steerling trace --json` writes it."""
    config = sj.GenerationConfig(max_new_tokens=16, seed=3, cfg_scale=0.5)
    prompt = sj.Prompt("The quick", config, sj.SteeringConfig((1,), 3.0))
    made = sj.generate(bundle, prompt.text_or_ids, prompt.config, prompt.steering)
    record = record_of(bundle, model_origin(bundle), prompt, made)
    explanation = explain(bundle, record, find_evidence=find_evidence)
    return json.loads(json.dumps(make_document(explanation, 3)))


def verified(bundle: sj.Bundle, document: dict[str, Any], **options: Any) -> dict[str, bool]:
    record = from_plain(document["trace"], "record")
    result = verify(bundle, record, document, find_evidence=find_evidence, **options)
    assert result.agrees == all(one.agrees for one in (*result.identities, *result.figures))
    return {one.name: one.agrees for one in (*result.identities, *result.figures)}


def test_what_was_computed_agrees(bundle: sj.Bundle, document: dict[str, Any]):
    outcome = verified(bundle, document)
    assert all(outcome.values())
    assert list(outcome)[3:] == [
        "logits",
        "contributions of concepts",
        "shares and activations",
        "input attributions",
        "input attributions of chunks",
        "training-data evidence",
    ]


def scaled(*path: Any, by: float = 1.05, add: float = 0.02) -> Change:
    """A change of one number of the document."""

    def change(document: dict[str, Any]) -> None:
        *parents, last = path
        value: Any = document
        for key in parents:
            value = value[key]
        value[last] = value[last] * by + add

    return change


def assigned(value: Any, *path: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = document
        for key in parents:
            place = place[key]
        place[last] = value

    return change


def swapped(document: dict[str, Any]) -> None:
    known = document["tokens"][2]["known"]
    known[0]["id"], known[1]["id"] = known[1]["id"], known[0]["id"]


def without_the_strongest(document: dict[str, Any]) -> None:
    """Drops a token's largest contribution and adds it to the others, so that the sum stays right."""
    token = document["tokens"][4]
    token["other_discovered"] += token["discovered"].pop(0)["contribution"]


def without_the_strongest_input(document: dict[str, Any]) -> None:
    inputs = document["tokens"][4]["inputs"]
    inputs["positions"].pop(0)
    inputs["rest"] += inputs["attributions"].pop(0)


FIGURES: dict[str, list[Change]] = {
    "logits": [scaled("trace", "commits", 3, "target_logits", 0), scaled("tokens", 3, "logit")],
    "contributions of concepts": [
        scaled("tokens", 1, "known", 0, "contribution", add=0.1),
        scaled("tokens", 1, "other_discovered", add=0.1),
        scaled("tokens", 1, "discovered", 0, "log_probability", add=0.1),
        scaled("tokens", 1, "reference_logit", add=0.1),
        scaled("tokens", 2, "epsilon"),
        scaled("tokens", 2, "share_error", add=0.1),
        swapped,
        without_the_strongest,
    ],
    "shares and activations": [
        scaled("tokens", 1, "discovered", 0, "activation"),
        scaled("tokens", 5, "net_shares", "known"),
        scaled("tokens", 5, "absolute_shares", "epsilon"),
        scaled("tokens", 5, "raised_shares", "discovered"),
        scaled("chunks", 0, "lowered_shares", "discovered"),
        scaled("chunks", 0, "known", 0, "share"),
        scaled("chunks", 0, "known", 0, "log_probability_share"),
        scaled("chunks", 0, "net_shares", "discovered"),
        scaled("chunks", 0, "epsilon_percent", add=1.0),
        assigned("other", "chunks", 0, "text"),
        assigned("other", "pieces", 2),
    ],
    "input attributions": [
        scaled("tokens", 6, "inputs", "attributions", 0, add=0.1),
        scaled("tokens", 6, "inputs", "rest", add=0.1),
        scaled("tokens", 6, "inputs", "value"),
        scaled("tokens", 6, "inputs", "baseline", add=0.1),
        scaled("tokens", 6, "inputs", "completeness_error", add=0.1),
        assigned(9, "tokens", 6, "inputs", "nodes"),
        assigned(None, "tokens", 6, "inputs", "converged"),
        without_the_strongest_input,
    ],
    "input attributions of chunks": [
        scaled("chunks", 0, "inputs", "attributions", 0, add=1.0),
        scaled("chunks", 0, "inputs", "value"),
    ],
    "training-data evidence": [
        scaled("chunks", 0, "evidence", "hits", 0, "value"),
        scaled("chunks", 0, "evidence", "hits", 1, "value"),
        scaled("chunks", 0, "evidence", "thresholds", "signature"),
        scaled("chunks", 0, "evidence", "best", "representation"),
        scaled("chunks", 0, "evidence", "sources", "verbatim", "docs"),
        assigned("a better document", "chunks", 0, "evidence", "hits", 1, "name"),
        assigned([], "chunks", 0, "evidence", "nothing_close"),
        lambda document: document["chunks"][0]["evidence"]["hits"].pop(),
    ],
}


def test_a_changed_value_of_each_figure_is_noticed(bundle: sj.Bundle, document: dict[str, Any]):
    """Every change makes its own figure differ, and the verification with it."""
    for figure, changes in FIGURES.items():
        for number, change in enumerate(changes):
            changed = copy.deepcopy(document)
            change(changed)
            assert changed != document, (figure, number)
            outcome = verified(bundle, changed, inputs="input" in figure)
            assert not outcome[figure], (figure, number)


def test_a_trace_alone_is_compared_with_its_logits(bundle: sj.Bundle, document: dict[str, Any]):
    plain = document["trace"]
    result = verify(bundle, from_plain(plain, "record"))
    assert result.agrees
    assert [one.name for one in result.figures] == ["logits", "contributions of concepts", "input attributions"]
    changed = copy.deepcopy(plain)
    changed["commits"][0]["target_logits"][0] += 0.5
    result = verify(bundle, from_plain(changed, "record"))
    assert not any(one.agrees for one in result.figures)
    assert all(one.difference == pytest.approx(0.5, abs=1e-3) for one in result.figures)


def test_a_document_of_version_1_is_compared_with_raw_logits(bundle: sj.Bundle, document: dict[str, Any]):
    """It has no `reference` and no log-probabilities."""
    record = from_plain(document["trace"], "record")
    raw = make_document(explain(bundle, record, inputs=False, reference="raw", find_evidence=find_evidence), 3)
    older = json.loads(json.dumps(raw))
    del older["reference"]
    for token in older["tokens"]:
        del token["reference_logit"]
        for entry in (*token["known"], *token["discovered"]):
            del entry["log_probability"]
    for chunk in older["chunks"]:
        for entry in (*chunk["known"], *chunk["discovered"]):
            del entry["log_probability_share"]
    assert all(verified(bundle, older).values())
    assert not verified(bundle, document | {"reference": "raw"}, inputs=False)["contributions of concepts"]


def test_a_record_says_what_it_was_made_with(bundle: sj.Bundle, document: dict[str, Any]):
    plain = document["trace"]
    assert {"steerling-jax", "jax", "jaxlib", "numpy", "python"} == set(plain["versions"])
    assert plain["catalogue"] == bundle.concepts.fingerprint
    assert plain["seed"] == 3
    older = {name: value for name, value in plain.items() if name not in ("versions", "catalogue", "index")}
    record = from_plain(older, "record")
    assert (record.origin.versions, record.origin.catalogue, record.index) == ({}, None, None)
    assert verify(bundle, record, inputs=False).agrees
    assert to_plain(from_plain(plain, "record")) == plain
    renamed = from_plain(plain | {"catalogue": "0" * 16}, "record")
    outcome = verify(bundle, renamed, inputs=False)
    assert [one.name for one in outcome.identities if not one.agrees] == ["catalogue"]
    assert not outcome.agrees
    outcome = verify(bundle, from_plain(plain | {"index": "a"}, "record"), inputs=False, index="b")
    assert [one.name for one in outcome.identities if not one.agrees] == ["index"]


def test_the_command(bundle: sj.Bundle, document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "explained.json"
    for chunk in document["chunks"]:
        assert chunk["evidence"]

    def run(value: Any, *options: str) -> tuple[int, str, str]:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        code = main(["verify", str(path), "--model", str(bundle.folder), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, out, _ = run(document, "--no-evidence", "--no-inputs")
    assert code == 0
    assert "agrees" in out
    assert "DIFFERS" not in out
    assert "not requested" in out
    changed = copy.deepcopy(document)
    changed["tokens"][0]["epsilon"] += 1.0
    code, out, _ = run(changed, "--no-evidence", "--no-inputs", "--json")
    report = json.loads(out)
    assert (code, report["agrees"]) == (1, False)
    assert [one["name"] for one in report["figures"] if not one["agrees"]] == ["contributions of concepts"]
    assert run(changed, "--no-evidence", "--no-inputs", "--tolerance", "1")[0] == 0
    code, out, err = run(changed, "--no-evidence", "--no-inputs")
    assert code == 1
    assert "epsilon" in err
    assert [line.split()[0] for line in out.splitlines() if line.rstrip().endswith("DIFFERS")] == ["contributions"]

    plain = document["trace"]
    short = copy.deepcopy(document)
    del short["tokens"][0]["epsilon"]
    for value, options, words in (
        (document, (), "contains evidence; give --index and --corpus"),
        (plain, ("--index", "i", "--corpus", "c"), "contains no evidence"),
        (document, ("--index", "i"), "--index and --corpus go together"),
        (document, ("--index", "i", "--corpus", "c", "--no-evidence"), "leave out one of them"),
        (plain | {"model": plain["model"] | {"fingerprint": "0" * 16}}, (), "is of the model"),
        (document | {"version": 9}, ("--no-evidence",), "an explanation of version 9"),
        (document | {"tokens": None}, ("--no-evidence",), "has no list of tokens"),
        (document | {"tokens": document["tokens"][1:]}, ("--no-evidence", "--no-inputs"), "explains 15 tokens"),
        (short, ("--no-evidence", "--no-inputs"), "not a whole explanation"),
        ("{", (), "is not a trace"),
        (plain | {"versions": {"jax": 1}}, (), "jax is 1"),
    ):
        code, _, err = run(value, *options)
        assert code == 2, words
        assert words in err.replace("\n", " "), err
        assert "Traceback" not in err

"""The gallery: every case is described in both languages and small, and its numbers are those of the bundled model."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import steerling_jax as sj
from steerling_jax.attribution import explorer
from steerling_jax.attribution.explorer.asking import parse_text
from steerling_jax.attribution.explorer.gallery import descriptions, listed, read_case
from steerling_jax.attribution.explorer.make_cases import compact, make_case
from steerling_jax.attribution.explorer.texts import Model
from steerling_jax.attribution.verify.verification import verify
from steerling_jax.decoding.trace_record import from_plain, origin_of

NAMES = [case["name"] for case in descriptions()]
ROUNDED = 6e-3  # of the largest value: numbers of a document have three digits, those of its trace are exact
LARGEST = 1_000_000  # bytes of all cases in a wheel, whose models are 15 MB
HANGUL = re.compile(r"[가-힣]")


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load()


def texts_of(name: str) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The requests and documents of a case, by name; its own is "text"."""
    case = read_case(name)
    assert case is not None
    own = {"text": (case["request"], case["document"])}
    return own | {other["name"]: (other["request"], other["document"]) for other in case["compare"]}


def test_cases_are_described_in_both_languages():
    assert len(set(NAMES)) == len(NAMES)
    for case in descriptions():
        for part in (case["title"], case["text"], *(other["title"] for other in case.get("compare", ()))):
            assert set(part) == {"en", "ko"}
            assert not HANGUL.search(part["en"])
            assert HANGUL.search(part["ko"])
        assert re.fullmatch(r"#([a-z]+=[\w-]+&?)*", case["state"])
    folder = Path(explorer.__file__).parent / "cases"
    assert {path.stem for path in folder.iterdir()} == set(NAMES), "`make cases` writes them"
    assert [case["name"] for case in listed()] == NAMES
    assert read_case("../cases/files") is None


def test_the_gallery_is_small():
    folder = Path(explorer.__file__).parent / "cases"
    assert sum(len(zlib.compress(path.read_bytes())) for path in folder.iterdir()) < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_a_selection_of_a_case_lies_in_its_text(name: str):
    case = read_case(name)
    assert case is not None
    document = case["document"]
    written = [token["position"] for token in document["tokens"]]
    fields = dict(part.split("=") for part in case["state"].removeprefix("#").split("&"))
    if "at" in fields:
        start, _, end = fields["at"].partition("-")
        assert min(written) <= int(start) < int(end or int(start) + 1) <= max(written) + 1
    assert int(fields.get("step", 0)) <= max(commit["step"] for commit in document["trace"]["commits"])
    assert document["considered"]["agreeing"] >= 0.9 * document["considered"]["compared"]
    assert document["cost"]["tokens"] == len(written)
    assert all(token["inputs"]["positions"] for token in document["tokens"][1:])


@pytest.mark.parametrize("name", ["given", "paraphrase"])
def test_training_data_of_a_given_text_and_its_paraphrase(bundle: sj.Bundle, name: str):
    """The places are in documents that the bundled model was trained on, whose license is beside them."""
    (document,) = (document for _, document in texts_of(name).values())
    (chunk,) = document["chunks"]
    evidence = chunk["evidence"]
    assert set(evidence["thresholds"]) == set(evidence["best"]) == {"verbatim", "signature", "representation"}
    for score, threshold in evidence["thresholds"].items():
        values = [hit["value"] for hit in evidence["hits"] if hit["score"] == score]
        assert (score in evidence["nothing_close"]) == (not values) == (evidence["best"][score] <= threshold)
        assert max(values, default=evidence["best"][score]) == evidence["best"][score]
    folder = Path(sj.__file__).parent / "bundled" / "steerling-pydocs"
    trained = {(one["name"], one["sha256"]) for one in json.loads((folder / "documents.json").read_text())["documents"]}
    assert evidence["hits"]
    for hit in evidence["hits"]:
        assert hit["license"] == "PSF-2.0"
        assert (hit["name"].removeprefix(f"{hit['source']}/"), hit["sha256"]) in trained
        assert chunk["start"] <= hit["query"][0] < hit["query"][1] <= chunk["end"]
        if hit["score"] == "verbatim":
            assert " ".join(hit["text"].split()) in " ".join(chunk["text"].split())
    assert ("verbatim" in evidence["nothing_close"]) == (name == "paraphrase")


def replay(bundle: sj.Bundle, request: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Compares a document's logits, contributions and shares with those that are computed from its trace."""
    record = from_plain(document["trace"], "The case")
    if request.get("random_direction"):  # whose direction is not in the record
        model = Model(bundle, origin_of(bundle))
        text, _ = parse_text(request, bundle, model.origin.fingerprint, None)
        trace = dataclasses.replace(record.trace, plan=model.request(text).steering)
        record = dataclasses.replace(record, trace=trace)
    exact = verify(bundle, record, inputs=False).figures
    rounded = verify(bundle, record, document, inputs=False, tolerance=ROUNDED).figures
    wrong = [(one.name, one.difference, one.place, one.contradictions) for one in (*exact, *rounded) if not one.agrees]
    assert {one.name for one in rounded} >= {"logits", "contributions of concepts", "shares and activations"}
    assert not wrong


@pytest.mark.parametrize("name", NAMES[:1])
def test_a_case_has_the_models_numbers(bundle: sj.Bundle, name: str):
    for request, document in texts_of(name).values():
        replay(bundle, request, document)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_every_case_has_the_models_numbers(bundle: sj.Bundle, name: str):
    for request, document in texts_of(name).values():
        replay(bundle, request, document)


def test_a_case_is_made_as_the_server_would(text_model: Path):
    bundle = sj.load(text_model)
    request = {"prompt": "The quick brown", "max_tokens": 16, "seed": 1}
    document = make_case(bundle, request, None)
    whole = sj.generate(bundle, "The quick brown", sj.GenerationConfig(max_new_tokens=16, seed=1))
    assert document["trace"]["tokens"] == whole.trace.tokens.tolist()
    replay(bundle, request, document)
    steered = request | {"steering": {"amplify": {"Email": 1.0}}}
    other = make_case(bundle, steered | {"random_direction": True}, None)
    assert other["trace"]["steering_configs"] == []
    assert "of the size of" in other["trace"]["policies"]["random_direction"]
    replay(bundle, steered | {"random_direction": True}, other)
    with pytest.raises(AssertionError):  # a wrong number is noticed
        replay(
            bundle, request, document | {"tokens": [document["tokens"][0] | {"logit": 99.0}, *document["tokens"][1:]]}
        )
    token = document["tokens"][-1]["inputs"]
    assert len(token["positions"]) == len(token["attributions"]) <= 10
    assert token["value"] - token["baseline"] == pytest.approx(sum(token["attributions"]) + token["rest"], abs=0.1)
    assert compact(document) == document, "numbers that are short stay as they are"

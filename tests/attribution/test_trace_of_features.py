"""A trace of a model with a bottleneck: the features behind each token are in the document and in the report."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import steerling_jax as sj
from steerling_jax.attribution.trace.document import make_document
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.trace.parts import complete_document
from steerling_jax.attribution.trace.terminal import render
from steerling_jax.autoencoders.bottleneck import bottleneck_of
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.concepts.concept import Concept
from steerling_jax.decoding.trace_record import TraceRecord, origin_of, record_of
from tests.worlds.autoencoders import make_autoencoder
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    plain = sj.load(MODEL, dtype="float32")
    made = make_autoencoder(Settings("topk", 6, subtract_b_dec=True), width=plain.backbone.width)
    return sj.attach_bottleneck(plain, sj.Autoencoder(made.weights))


def test_features_and_a_bias_add_up_to_the_recorded_logits(bundle: sj.Bundle):
    trace = sj.given_trace(bundle, [5, 9, 12], [7, 31, 8, 2])
    record = TraceRecord(trace, origin_of(bundle), "5 9 12", "7 31 8 2")
    explanation = explain(bundle, record, inputs=False, reference="raw")
    document = json.loads(json.dumps(make_document(explanation, 4)))
    assert document["features"]["reference"] == "raw"
    for token in document["tokens"]:
        assert len(token["features"]) == 4
        total = sum(one["contribution"] for one in token["features"]) + token["other_features"] + token["feature_bias"]
        assert total == pytest.approx(token["logit"], abs=1e-3)
    parts = explanation.features.parts
    assert parts is not None
    assert parts.positions.tolist() == [3, 4, 5, 6]
    sums = np.zeros(96)
    np.add.at(sums, parts.features.reshape(-1), parts.contributions.reshape(-1))
    strongest = int(np.abs(sums).argmax())
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(explanation, 4))
    assert f"{sums[strongest]:+8.2f}  #{strongest}" in captured.get()


def test_features_of_a_bottleneck_have_their_names(bundle: sj.Bundle):
    source = bottleneck_of(bundle)
    names = tuple(Concept(id, f"name of {id}", head="feature") for id in range(source.n_latents))
    named = sj.attach_bottleneck(bundle, dataclasses.replace(source, features=names))
    record = TraceRecord(sj.given_trace(named, [5, 9], [7, 31]), origin_of(named), "5 9", "7 31")
    document = complete_document(named, explain(named, record, inputs=False), 4, steps=False)
    cards = document["cards"]["feature:bottleneck"]
    assert {one["feature"] for token in document["tokens"] for one in token["features"]} == {int(id) for id in cards}
    assert all((card["name"], card["is_named"]) == (f"name of {id}", True) for id, card in cards.items())


def test_models_without_a_bottleneck_have_none():
    plain = sj.load(MODEL, dtype="float32")
    trace = sj.given_trace(plain, [5, 9, 12], [7, 31])
    record = TraceRecord(trace, origin_of(plain), "5 9 12", "7 31")
    document = make_document(explain(plain, record, inputs=False), 4)
    assert "features" not in document
    assert "activations" not in document


def test_a_steered_text_has_the_features_that_wrote_it(bundle: sj.Bundle):
    """Their parts are of the rows that steering changed, so they add up to the recorded logits."""
    autoencoder = sj.load_autoencoder(REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model", k=10)
    steered = sj.with_features(bundle, autoencoder)
    config, steering = sj.GenerationConfig(max_new_tokens=3, temperature=0.0), sj.amplify("feature:3", 5.0, raw=True)
    made = sj.generate(steered, [5, 9, 12], config, steering)
    record = record_of(steered, origin_of(steered), sj.Prompt([5, 9, 12], config, steering), made)
    document = make_document(explain(steered, record, inputs=False, reference="raw"), 4)
    assert document["trace"]["steering"] == ["amplify feature 3 at 5"]
    for token in document["tokens"]:
        assert total_of(token) == pytest.approx(token["logit"], abs=1e-3)
    unsteered = sj.feature_contributions(bundle, made.trace.committed.tolist(), reference="raw")
    assert abs(unsteered.logits[2] - document["tokens"][0]["logit"]) > 1e-2


def total_of(token: dict[str, Any]) -> float:
    listed = sum(one["contribution"] for one in token["features"])
    return listed + token["other_features"] + token["feature_bias"] + token.get("feature_residual", 0.0)


def test_autoencoders_of_blocks_are_parts_of_logits_or_activations():
    """Those of the last block are parts, with a residual; those of others are activations where the text is read."""
    plain = sj.load(MODEL, dtype="float32")
    last, width = plain.backbone.n_layers - 1, plain.backbone.width
    made = make_autoencoder(Settings("topk", 6, subtract_b_dec=True), width=width)
    river = Concept(5, "rivers", "water", head="feature")
    inner, outer = (dataclasses.replace(made, layer=layer, name=f"of {layer}") for layer in (0, last))
    inner = dataclasses.replace(inner, features=(river,))
    ids = [5, 9, 12, 7, 31, 8, 2]
    record = TraceRecord(sj.given_trace(plain, ids[:3], ids[3:]), origin_of(plain), "5 9 12", "7 31 8 2")
    explanation = explain(plain, record, inputs=False, reference="raw", autoencoders=[inner, outer])
    document = json.loads(json.dumps(complete_document(plain, explanation, 4, steps=False)))
    assert (document["features"]["head"], document["features"]["layer"]) == (f"feature:{last}", last)
    assert document["features"]["largest_error"] < 1e-3
    for token in document["tokens"]:
        assert total_of(token) == pytest.approx(token["logit"], abs=1e-3)
        assert abs(token["feature_residual"]) > 1e-3
    (active,) = document["activations"]
    assert (active["head"], active["layer"], active["name"]) == ("feature:0", 0, "of 0")
    rows = np.asarray(sj.hidden_states(plain, [ids], layers=[0])[0][0])
    values, features = (np.asarray(one) for one in inner.encode(rows))
    for t in range(1, len(ids)):  # the first row's norm may be an extreme one
        expected = [[int(f), pytest.approx(float(v), rel=1e-4)] for f, v in zip(features[t], values[t]) if v > 0]
        assert active["tokens"][t] == expected
    cards = document["cards"]
    assert set(cards) == {"feature:0", f"feature:{last}"}
    assert set(cards["feature:0"]) == {str(feature) for row in active["tokens"] for feature, _ in row}
    other = next(name for name in cards["feature:0"] if name != "5")
    assert (cards["feature:0"][other]["name"], cards["feature:0"][other]["is_named"]) == (f"#{other}", False)
    assert len(cards["feature:0"][other]["promotes"]) == 6
    strongest, value = max((one for row in active["tokens"][3:] for one in row), key=lambda one: one[1])
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(explanation, 4))
    assert f"{value:8.2f}  #{strongest}" in captured.get()
    with pytest.raises(sj.UserError, match="of 0 and of 0 both read block 0"):
        explain(plain, record, inputs=False, autoencoders=[inner, inner])

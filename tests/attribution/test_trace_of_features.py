"""A trace of a model with a bottleneck: the features behind each token are in the document and in the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

import steerling_jax as sj
from steerling_jax.attribution.trace.document import make_document
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.trace.terminal import render
from steerling_jax.autoencoders.weights import Settings
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
    parts = explanation.features
    assert parts is not None
    rows = [position - 1 for position in range(3, 7)]
    sums = np.zeros(96)
    np.add.at(sums, parts.features[rows].reshape(-1), parts.contributions[rows].reshape(-1))
    strongest = int(np.abs(sums).argmax())
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(explanation, 4))
    assert f"{sums[strongest]:+8.2f}  #{strongest}" in captured.get()


def test_steered_texts_and_models_without_a_bottleneck_have_none(bundle: sj.Bundle):
    plain = sj.load(MODEL, dtype="float32")
    trace = sj.given_trace(plain, [5, 9, 12], [7, 31])
    record = TraceRecord(trace, origin_of(plain), "5 9 12", "7 31")
    assert "features" not in make_document(explain(plain, record, inputs=False), 4)
    autoencoder = sj.load_autoencoder(REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model", k=10)
    steered = sj.with_features(bundle, autoencoder)
    config, steering = sj.GenerationConfig(max_new_tokens=3, temperature=0.0), sj.amplify("feature:3", 5.0, raw=True)
    made = sj.generate(steered, [5, 9, 12], config, steering)
    record = record_of(steered, origin_of(steered), sj.Prompt([5, 9, 12], config, steering), made)
    document = make_document(explain(steered, record, inputs=False), 4)
    assert "features" not in document
    assert document["trace"]["steering"] == ["amplify feature 3 at 5"]

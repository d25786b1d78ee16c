"""Decoder families against what Hugging Face transformers returned: residuals, logits, steered logits, greedy texts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.edits import inject
from tests.worlds.decoders import DECODERS, GoldenDecoder, assert_within, golden_decoder
from tests.worlds.greedy_tokens import greedy_tokens


@pytest.fixture(scope="module", params=DECODERS)
def case(request: pytest.FixtureRequest) -> tuple[GoldenDecoder, sj.Bundle]:
    golden = golden_decoder(request.param)
    return golden, sj.load(golden.folder)


def test_residuals_are_the_published_ones(case: tuple[GoldenDecoder, sj.Bundle]):
    golden, bundle = case
    layers = range(bundle.config.n_layers)
    states = sj.hidden_states(bundle, golden.arrays["input_ids"], layers=layers)
    for layer in layers:
        assert_within(states[layer], golden.arrays[f"residual.{layer}"], golden.tolerance)


def test_logits_are_the_published_ones_with_and_without_an_edit(case: tuple[GoldenDecoder, sj.Bundle]):
    golden, bundle = case
    ids, arrays = golden.arrays["input_ids"], golden.arrays
    result = sj.forward(bundle, ids)
    assert_within(np.asarray(result.logits), arrays["logits"], golden.tolerance)
    assert result.hidden.shape == (*ids.shape, bundle.config.width)
    vector = golden.alpha * arrays["steered.direction"][None, None]
    layers = jnp.arange(bundle.config.n_layers) == golden.steered_layer
    steered = sj.forward(bundle, ids, edits=[inject(jnp.asarray(vector), layers=layers)]).logits
    assert_within(np.asarray(steered), arrays["steered.logits"], golden.tolerance)
    assert np.abs(arrays["steered.logits"] - arrays["logits"]).max() > 100 * golden.tolerance


def test_greedy_texts_are_the_published_ones(case: tuple[GoldenDecoder, sj.Bundle]):
    golden, bundle = case
    text = golden.arrays["greedy"]
    new = greedy_tokens(bundle.params, jnp.asarray(text[:, :9]), backbone=bundle.backbone, count=text.shape[1] - 9)
    np.testing.assert_array_equal(new, text[:, 9:])

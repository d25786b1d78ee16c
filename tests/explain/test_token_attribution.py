"""Input attribution of text from autoregressive models: from the mean embedding to the text before each token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.errors import UserError
from steerling_jax.explain.inputs.targets import ConceptActivation, TokenContrast, TokenLogProbability
from steerling_jax.models.edits import inject
from tests.worlds.decoders import GOLDEN_DECODERS

PROMPT = list(range(5, 13))


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(GOLDEN_DECODERS / "gemma2")  # its logits are capped, so they are no linear function of the row


@pytest.fixture(scope="module")
def trace(bundle) -> sj.Trace:
    return sj.generate(bundle, PROMPT, sj.GenerationConfig(max_new_tokens=3, seed=1)).trace


def test_it_is_the_integral_over_the_text_before_the_token(bundle, trace):
    """A plain loop over the nodes, with the gradient of the whole model."""
    backbone, params = bundle.backbone, bundle.params
    tokens = jnp.asarray(trace.tokens[None, :10])
    mean = backbone.embed(params, jnp.arange(64)[None]).mean(axis=(0, 1))[None]
    full = backbone.embed(params, tokens)[0]

    def logit(x: jax.Array) -> jax.Array:
        return backbone.logits(params, backbone.run(params, x[None]).hidden[0, 9])[int(trace.tokens[10])]

    gradient, expected = jax.jit(jax.grad(logit)), np.zeros(10)
    points, weights = np.polynomial.legendre.leggauss(8)
    for point, weight in zip((points + 1) / 2, weights / 2):
        expected += weight * np.asarray((gradient(mean + point * (full - mean)) * (full - mean)).sum(axis=1))
    found = sj.attribute_inputs(bundle, trace, positions=[10], nodes=8, batch_size=4)
    np.testing.assert_allclose(found.attributions[0, :10], expected, atol=2e-4)
    np.testing.assert_array_equal(found.attributions[0, 10:], 0.0)
    np.testing.assert_allclose(found.path_logits, found.target_logits, atol=1e-4)


def test_other_targets(bundle, trace):
    token = int(trace.tokens[9])
    logits = np.asarray(sj.forward(bundle, trace.tokens[:9]).logits[0, -1], np.float64)
    log_p = logits[token] - np.log(np.exp(logits).sum())
    targets = [TokenLogProbability(), TokenContrast(3)]
    found = sj.attribute_inputs(
        bundle, trace, positions=[9, 9], target=targets, method="gradient-x-input", batch_size=4
    )
    np.testing.assert_allclose(found.path_logits, [log_p, logits[token] - logits[3]], atol=1e-4)


def test_a_given_text_is_read_in_one_pass(bundle):
    trace = sj.given_trace(bundle, PROMPT, [20, 21, 22])
    logits = np.asarray(sj.forward(bundle, trace.tokens).logits[0])
    for _, position, token, logit in trace.flat():
        assert logit == pytest.approx(float(logits[position - 1, token]), abs=1e-4)
    with pytest.raises(UserError, match="Steering needs a model with concepts"):
        sj.given_trace(bundle, PROMPT, [20], sj.SteeringConfig((1,), 3.0))


def test_refusals(bundle, trace):
    with pytest.raises(UserError, match="no known concepts to explain"):
        sj.attribute_inputs(bundle, trace, target=ConceptActivation(0))
    with pytest.raises(UserError, match="compares tokens with the mask"):
        sj.attribute_inputs(bundle, trace, method="embedding-similarity")


def test_a_text_with_edits_is_explained_with_them(bundle):
    vector = jax.random.normal(jax.random.key(0), (1, 1, bundle.config.width))
    edits = [inject(vector), dataclasses.replace(inject(-2 * vector), generated_only=True)]
    trace = sj.generate(bundle, PROMPT, sj.GenerationConfig(max_new_tokens=3, seed=1), edits=edits).trace
    found, without = (
        sj.attribute_inputs(bundle, one, nodes=1, batch_size=4) for one in (trace, dataclasses.replace(trace, edits=()))
    )
    np.testing.assert_allclose(found.path_logits, found.target_logits, atol=1e-4)
    assert np.abs(without.path_logits - found.target_logits).max() > 0.01

"""The divergence of next-token distributions on a part of the vocabulary, and the metric of hidden rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.distribution_loss import divergence, sample_vocabulary
from steerling_jax.autoencoders.output_metric import output_metric
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.models.output_projection import OutputProjection
from tests.worlds.autoencoders import WIDTH, make_autoencoder

N, D, V = 37, 12, 200


def draw(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def exact(projection: OutputProjection, x: jax.Array, output: jax.Array) -> jax.Array:
    """KL(p ‖ q) of each row over the whole vocabulary."""
    table, cap = projection
    bend = lambda logits: logits if cap is None else cap * jnp.tanh(logits / cap)  # noqa: E731
    log_p, log_q = (jax.nn.log_softmax(bend(rows @ table.T)) for rows in (x, output))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def top_tokens(projection: OutputProjection, x: jax.Array, count: int) -> jax.Array:
    return jax.lax.top_k(x @ projection.table.T, count)[1].astype(jnp.int32)


@pytest.mark.parametrize("cap", [None, 4.0])
def test_with_all_tokens_it_is_the_divergence_and_its_gradient(cap: float | None):
    projection = OutputProjection(draw(0, V, D), cap)
    x, output = draw(1, N, D), draw(2, N, D)
    everything = sample_vocabulary(jnp.ones(V), V, jax.random.key(0))
    nats, gradient = divergence(projection, x, output, top_tokens(projection, x, 7), everything)
    np.testing.assert_allclose(nats, exact(projection, x, output), rtol=1e-4)
    expected = jax.grad(lambda output: jnp.sum(exact(projection, x, output)))(output)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_sample_has_no_noise_where_the_distributions_agree_and_estimates_them_elsewhere():
    projection = OutputProjection(draw(0, V, D, scale=0.5), None)
    x = draw(1, N, D)
    output = x + draw(2, N, D, scale=0.3)
    top = top_tokens(projection, x, 20)
    importance = jax.nn.softmax(x @ projection.table.T).mean(axis=0)
    draws = []
    for seed in range(40):
        sample = sample_vocabulary(importance, 60, jax.random.key(seed))
        assert len(set(np.asarray(sample.ids).tolist())) == 60
        nats, gradient = divergence(projection, x, x, top, sample)
        np.testing.assert_allclose(nats, 0.0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
        nats, _ = divergence(projection, x, output, top, sample)
        assert float(nats.min()) > 0
        draws.append(float(nats.mean()))
    truth = float(exact(projection, x, output).mean())
    assert abs(np.mean(draws) / truth - 1) < 0.03
    assert np.std(draws) / truth < 0.1


def test_sums_over_a_sample_have_the_expectation_of_the_sums_over_the_vocabulary():
    importance = jnp.asarray(np.random.default_rng(0).exponential(size=V) + 0.01, jnp.float32)
    values = np.random.default_rng(1).normal(1, 1, V)
    sums = []
    for seed in range(300):
        ids, weights = sample_vocabulary(importance, 50, jax.random.key(seed))
        sums.append(float((values[np.asarray(ids)] * np.asarray(weights)).sum()))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - values.sum()) < 4 * error


@pytest.mark.parametrize("cap", [None, 4.0])
def test_distances_in_the_metric_are_divergences(cap: float | None):
    """For small changes of rows, in random directions and in those of a table's rows, in one ratio."""
    table = draw(0, V, WIDTH) * jnp.linspace(0.2, 2, WIDTH)[None]
    projection = OutputProjection(table, cap)
    rows = draw(1, 600, WIDTH, scale=0.3)
    metric = output_metric(projection, rows, size=5.0)
    moved = np.asarray(rows @ metric.to)
    np.testing.assert_allclose(np.mean(np.sum((moved - moved.mean(axis=0)) ** 2, axis=1)), 5.0, rtol=1e-3)
    np.testing.assert_allclose(metric.to @ metric.back, np.eye(WIDTH), atol=1e-4)
    np.testing.assert_allclose(
        metric.projection(projection).table @ moved.T, table @ rows.T, atol=1e-4 * float(jnp.abs(table).max())
    )
    ratios = []
    for direction in [*draw(2, 4, WIDTH), *table[:4]]:
        change = 0.05 * direction / jnp.linalg.norm(direction)
        squared = float(jnp.sum((change @ metric.to) ** 2))
        ratios.append(squared / float(exact(projection, rows, rows + change[None]).mean()))
    np.testing.assert_allclose(ratios, np.mean(ratios), rtol=0.15)
    # Without the metric, the same lengths are divergences that differ by far more.
    lengths = [float(exact(projection, rows, rows + 0.05 * jnp.eye(WIDTH)[i][None]).mean()) for i in (0, WIDTH - 1)]
    assert lengths[1] > 5 * lengths[0]


def test_an_autoencoder_of_moved_rows_has_the_same_latents_as_one_of_the_rows():
    projection = OutputProjection(draw(0, V, WIDTH), None)
    rows = draw(1, 300, WIDTH)
    metric = output_metric(projection, rows, size=5.0)
    moved = make_autoencoder(Settings("topk", 6, subtract_b_dec=True))
    own = Autoencoder(metric.weights(moved.weights))
    values, indices = moved.encode(rows @ metric.to)
    found, same = own.encode(rows)
    np.testing.assert_array_equal(same, indices)
    np.testing.assert_allclose(found, values, atol=1e-4)
    np.testing.assert_allclose(own.decode((found, same)) @ metric.to, moved.decode((values, indices)), atol=1e-3)

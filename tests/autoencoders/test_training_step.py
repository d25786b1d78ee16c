"""The objective of autoencoder training against a dense twin that JAX derives, and what training does to weights."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerling_jax as sj
from steerling_jax.autoencoders.dead_latents import kth_largest
from steerling_jax.autoencoders.objective import TrainedWeights, loss_and_gradients
from steerling_jax.autoencoders.training_step import AutoencoderRecipe, init_state, update
from tests.worlds.paths import REPOSITORY

N, D, S, K = 40, 8, 64, 5
AUX = 1 / 32


def trained(seed: int = 0) -> TrainedWeights:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return TrainedWeights(draw(S, D), draw(S, D), draw(S), draw(D))


def dense_loss(weights: TrainedWeights, x, row_weights, dead, offered: int, k_aux: int) -> jax.Array:
    """The loss with every latent in every product, and with a sort for each choice."""
    w = row_weights[:, None]
    mean = (w * x).sum(0) / row_weights.sum()
    variance = (w * (x - mean[None]) ** 2).sum()
    pre = jax.nn.relu((x - weights.b_dec[None]) @ weights.encoder.T + weights.b_enc[None])
    kept = jnp.where(pre >= jnp.sort(pre, axis=1)[:, -K][:, None], pre, 0.0)
    error = x - (kept @ weights.decoder + weights.b_dec[None])
    loss = (w * error**2).sum() / variance
    if dead.any():
        centred = jax.lax.stop_gradient(x - weights.b_dec[None])
        chosen = np.flatnonzero(dead)[:offered]
        pre = jax.nn.relu(centred @ weights.encoder[chosen].T + weights.b_enc[chosen][None])
        if k_aux < len(chosen):
            pre = jnp.where(pre >= jnp.sort(pre, axis=1)[:, -k_aux][:, None], pre, 0.0)
        left = jax.lax.stop_gradient(error) - pre @ weights.decoder[chosen]
        loss = loss + AUX * min(dead.sum() / k_aux, 1.0) * (w * left**2).sum() / variance
    return loss


@pytest.mark.parametrize(("dead", "k_aux", "max_dead"), [(0, 4, 16), (3, 4, 16), (12, 4, 16), (40, 4, 16), (40, 4, 64)])
def test_gradients_are_those_of_a_dense_computation(dead: int, k_aux: int, max_dead: int):
    weights, rng = trained(), np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(N, D)), jnp.float32)
    row_weights = jnp.asarray(rng.random(N) < 0.8, jnp.float32)
    mask = np.zeros(S, bool)
    mask[rng.permutation(S)[:dead]] = True
    parts, found = loss_and_gradients(
        weights, x, row_weights, jnp.asarray(mask), jnp.int32(0), k=K, k_aux=k_aux, max_dead=max_dead, aux_weight=AUX
    )
    expected_loss, expected = jax.value_and_grad(dense_loss)(weights, x, row_weights, mask, max_dead, k_aux)
    np.testing.assert_allclose(parts.unexplained + AUX * parts.auxiliary, expected_loss, rtol=1e-5)
    for field in ("encoder", "decoder", "b_enc", "b_dec"):
        reference = np.asarray(getattr(expected, field))
        np.testing.assert_allclose(getattr(found, field), reference, atol=1e-5 * np.abs(reference).max(), err_msg=field)


def test_dead_latents_get_gradients_on_both_sides_and_take_turns():
    """All latents are dead and 16 are offered: after S / 16 steps each was."""
    weights = trained()
    x = jnp.asarray(np.random.default_rng(2).normal(size=(N, D)), jnp.float32)
    options = {"k": K, "k_aux": 64, "max_dead": 16, "aux_weight": AUX}
    alive, every = jnp.zeros(S, bool), jnp.ones(S, bool)
    gradients = partial(loss_and_gradients, weights, x, jnp.ones(N), **options)
    _, without = gradients(alive, jnp.int32(0))
    touched = {"encoder": np.zeros(S, bool), "decoder": np.zeros(S, bool)}
    for step in range(S // 16):
        _, found = gradients(every, jnp.int32(step))
        for side, rows in touched.items():
            rows |= np.abs(getattr(found, side) - getattr(without, side)).max(axis=1) > 0
    pre = (x - weights.b_dec[None]) @ weights.encoder.T + weights.b_enc[None]
    can_be_kept = np.asarray(pre).max(axis=0) > 0
    assert can_be_kept.sum() > S // 2
    for rows in touched.values():
        np.testing.assert_array_equal(rows, can_be_kept)


def test_rows_that_do_not_count_change_nothing():
    weights, rng = trained(), np.random.default_rng(3)
    x = rng.normal(size=(N, D)).astype(np.float32)
    options = {"k": K, "k_aux": 4, "max_dead": 16, "aux_weight": AUX}
    few = loss_and_gradients(weights, jnp.asarray(x[:30]), jnp.ones(30), jnp.arange(S) < 9, jnp.int32(0), **options)
    x[30:] *= 100
    counted = (jnp.arange(N) < 30).astype(jnp.float32)
    all_ = loss_and_gradients(weights, jnp.asarray(x), counted, jnp.arange(S) < 9, jnp.int32(0), **options)
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(all_), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


DIRECTIONS = np.random.default_rng(0).normal(size=(24, 16))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def mixtures(count: int, seed: int) -> np.ndarray:
    """Rows that are sums of 3 of 24 fixed directions, off centre; some rows of enormous norm."""
    rng = np.random.default_rng(seed)
    active = np.argsort(rng.random((count, 24)), axis=1)[:, :3]
    rows = 2.0 + (rng.uniform(1, 3, (count, 3))[:, :, None] * DIRECTIONS[active]).sum(axis=1)
    rows[::100] *= 1000
    return rows.astype(np.float32)


def test_training_finds_the_directions_of_sparse_mixtures():
    recipe = AutoencoderRecipe(n_latents=48, k=3, steps=600, batch_rows=256, learning_rate=3e-3, dead_after=5000)
    sample = jnp.asarray(mixtures(2000, 1))
    state = init_state(recipe, sample, jax.random.key(0))
    step = jax.jit(partial(update, recipe=recipe), donate_argnums=0)
    state, first = step(state, jnp.asarray(mixtures(recipe.batch_rows, 1)))
    metrics = first
    for number in range(1, recipe.steps):
        state, metrics = step(state, jnp.asarray(mixtures(recipe.batch_rows, 1 + number)))
    assert float(metrics["unexplained"]) < 0.15 < 0.5 < float(first["unexplained"])
    np.testing.assert_allclose(metrics["left_out"], 3 / 256)
    np.testing.assert_allclose(jnp.linalg.norm(state.trained.decoder, axis=1), 1.0, atol=1e-5)
    likeness = np.abs(np.asarray(state.trained.decoder) @ DIRECTIONS.T).max(axis=0)
    assert (likeness > 0.9).mean() > 0.8
    autoencoder = sj.Autoencoder(state.trained.weights(recipe.k))
    rows = mixtures(1000, 9999)
    rows = rows[np.linalg.norm(rows, axis=1) < 100]
    error = np.asarray(autoencoder.reconstruct(rows)) - rows
    assert (error**2).sum() / ((rows - rows.mean(0)) ** 2).sum() < 0.15


def test_a_latent_that_is_not_kept_dies_and_one_that_is_does_not():
    recipe = AutoencoderRecipe(n_latents=S, k=K, steps=10, batch_rows=N, dead_after=2 * N)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(N, D)), jnp.float32)
    state = init_state(recipe, x, jax.random.key(1))
    silenced = dataclasses.replace(state.trained, b_enc=state.trained.b_enc.at[7].set(-1e3))
    state = dataclasses.replace(state, trained=silenced)
    state, _ = update(state, x, recipe=recipe)
    state, _ = update(state, x, recipe=recipe)
    state, metrics = update(state, x, recipe=recipe)
    assert int(state.silent[7]) == 2 * N
    assert int(state.silent.min()) == 0
    assert float(metrics["dead"]) > 0


@pytest.mark.parametrize(
    ("field", "value"), [("k", 0), ("k", 65), ("n_latents", 0), ("norm_limit", 1.0), ("dead_after", 0)]
)
def test_invalid_recipes(field: str, value: float):
    changes: dict[str, Any] = {"n_latents": 64, "k": 5, "steps": 1, field: value}
    with pytest.raises(sj.UserError, match=f"{field} is {value}"):
        AutoencoderRecipe(**changes)


def test_updates_on_a_mesh_are_those_of_one_device():
    """On eight devices, in a process of its own: latents over four of them, rows over two, with dead latents."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.worlds.sharded_autoencoder"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    assert found["dead"] > 0.2  # otherwise AuxK was not tried
    assert found["silent"] == 0
    for name in ("encoder", "decoder", "b_enc", "b_dec"):
        assert found[name] < 1e-3, found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 9), st.data())
def test_the_kth_largest_is_that_of_a_sort(seed: int, rows: int, columns: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, columns))
    # Rounded and cut at 0, so that many values are equal; some are infinite.
    values = np.maximum(np.random.default_rng(seed).normal(size=(rows, columns)).round(1), 0).astype(np.float32)
    values[values > 1.5] = np.inf
    np.testing.assert_array_equal(kth_largest(jnp.asarray(values), k), np.sort(values, axis=1)[:, -k])

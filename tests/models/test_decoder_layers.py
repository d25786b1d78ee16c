"""Layers with two forms: DeltaNet as a scan and in chunks; experts as tiled, as ragged and as dense products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.attention import attend_causal, causal_mask
from steerling_jax.models.decoder.deltanet import delta_chunked, delta_scan
from steerling_jax.models.decoder.experts import ExpertWeights, grouped_mlp, route, run_experts, tiled_mlp
from steerling_jax.models.decoder.ragged import stack_gradient
from tests.worlds.decoders import GOLDEN_DECODERS


def delta_inputs(T: int) -> tuple[jax.Array, ...]:
    B, H, Dk, Dv = 2, 3, 8, 5
    keys = jax.random.split(jax.random.key(0), 6)
    q, k = (jax.random.normal(key, (B, T, H, Dk)) for key in keys[:2])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    return (
        jax.random.normal(keys[2], (B, H, Dk, Dv)), q, k, jax.random.normal(keys[3], (B, T, H, Dv)),
        jax.random.uniform(keys[4], (B, T, H)), -3 * jax.random.uniform(keys[5], (B, T, H)) ** 4,
    )  # fmt: skip


@pytest.mark.parametrize("T", [1, 64, 150])
def test_chunks_are_the_scan(T: int):
    inputs = delta_inputs(T)
    for found, expected in zip(jax.jit(delta_chunked)(*inputs), jax.jit(delta_scan)(*inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gradients_of_chunks_are_those_of_the_scan():
    inputs = delta_inputs(70)

    def gradients(form: Any) -> Any:
        def value(*inputs: jax.Array) -> Any:
            return sum(jnp.sum(jnp.sin(x)) for x in form(*inputs))

        return jax.jit(jax.grad(value, argnums=tuple(range(6))))(*inputs)

    for found, expected in zip(gradients(delta_chunked), gradients(delta_scan), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(jnp.abs(expected).max())))


CONFIG = sj.load(GOLDEN_DECODERS / "qwen3_moe").config
E, D, F = 8, 32, 24


def experts() -> ExpertWeights:
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = ((E, F, D), (E, F, D), (E, D, F))
    return ExpertWeights(*(jax.random.normal(key, shape) * 0.2 for key, shape in zip(keys, shapes, strict=True)))


def dense(x: jax.Array, selected: jax.Array, weights: jax.Array, experts: ExpertWeights) -> jax.Array:
    """Every expert on every token, with the weight 0 where it is not selected."""
    hidden = jax.nn.silu(jnp.einsum("nd,efd->nef", x, experts.gate)) * jnp.einsum("nd,efd->nef", x, experts.up)
    outputs = jnp.einsum("nef,edf->ned", hidden, experts.down)
    share = jnp.sum(jax.nn.one_hot(selected, E) * weights[:, :, None], axis=1)
    return jnp.einsum("ned,ne->nd", outputs, share)


@pytest.mark.parametrize("N", [1, 7, 300])
def test_selected_experts_are_all_experts_with_weights(N: int):
    """Also the gradients; the router prefers some experts, so that groups are of very different sizes, or empty."""
    x = jax.random.normal(jax.random.key(2), (N, D))
    logits = x @ jax.random.normal(jax.random.key(3), (D, E)) + 6 * (jnp.arange(E) < 2)[None]
    assert CONFIG.experts is not None
    weights, selected = route(logits, CONFIG.experts)

    def value(form: Any) -> Any:
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(form(*a))), argnums=(0, 1, 2))

    def sparse(x: jax.Array, weights: jax.Array, experts: ExpertWeights) -> jax.Array:
        return run_experts(x, selected, weights, experts, CONFIG, Compute())

    def every(x: jax.Array, weights: jax.Array, experts: ExpertWeights) -> jax.Array:
        return dense(x, selected, weights, experts)

    found, expected = (jax.jit(value(form))(x, weights, experts()) for form in (sparse, every))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("sizes", [[0, 0, 9, 1, 0, 0, 0, 0], [40, 0, 0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 6, 7, 8]])
def test_tiles_are_ragged_products(sizes: list[int]):
    rows = jax.random.normal(jax.random.key(4), (sum(sizes), D))
    found, expected = (
        jax.jit(form, static_argnums=(3, 4))(rows, jnp.array(sizes), experts(), CONFIG, Compute())
        for form in (tiled_mlp, grouped_mlp)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_of_ragged_products_are_those_of_tiles():
    """Of the rows and of all experts' weights; also of experts without rows."""
    rows, sizes = jax.random.normal(jax.random.key(4), (40, D)), jnp.array([0, 9, 0, 3, 20, 0, 8, 0])

    def value(form: Any) -> Any:
        return jax.grad(lambda rows, own: jnp.sum(jnp.sin(form(rows, sizes, own, CONFIG, Compute()))), argnums=(0, 1))

    found, expected = (jax.jit(value(form))(rows, experts()) for form in (grouped_mlp, tiled_mlp))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("rows", [40, 600])
def test_the_kernel_for_the_gradient_of_weights(rows: int):
    """As it is computed anywhere; of 600 rows an expert has some in two tiles."""
    share = rows // 40
    sizes = jnp.array([0, 9, 0, 3, 20, 0, 8, 0], jnp.int32) * share
    outer, inner = (jax.random.normal(jax.random.key(seed), (rows, width)) for seed, width in ((0, 24), (1, D)))
    found = stack_gradient(outer, inner, sizes, interpret=True)
    of_row = np.repeat(np.arange(8), sizes)
    for expert in range(8):
        own = of_row == expert
        np.testing.assert_allclose(found[expert], np.asarray(outer)[own].T @ np.asarray(inner)[own], atol=1e-3)


@pytest.mark.parametrize("normalise", [True, False])
def test_routing_weights(normalise: bool):
    assert CONFIG.experts is not None
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.4, 0.05, 0.05, 0.1, 0.05, 0.05]]))
    weights, selected = route(logits, replace(CONFIG.experts, normalise=normalise))
    np.testing.assert_array_equal(selected, [[2, 1]])
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3]] if normalise else [[0.4, 0.2]], rtol=1e-6)


def test_many_queries_in_chunks_are_all_at_once():
    """Also the gradients, with a sliding window and a cap, for a length that is no multiple of a chunk."""
    B, T, H, G, d = 1, 530, 4, 2, 8
    keys = jax.random.split(jax.random.key(5), 3)
    q = jax.random.normal(keys[0], (B, T, H, d))
    k, v = (jax.random.normal(key, (B, G, T, d)) for key in keys[1:])
    at = jnp.arange(T)[None]
    mask = causal_mask(at, at, 300)

    def value(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(attend_causal(q, k, v, mask, 0.3, 5.0)))

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = 5 * jnp.tanh(jnp.einsum("bthd,bhsd->bhts", q, jnp.repeat(k, H // G, axis=1)) * 0.3 / 5)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("bhts,bhsd->bthd", weights, jnp.repeat(v, H // G, axis=1))))

    found, expected = (jax.jit(jax.value_and_grad(form, argnums=(0, 1, 2)))(q, k, v) for form in (value, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)

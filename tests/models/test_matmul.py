"""Products with weights in low precision: gradients against float64, alone and in a chain of products."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.layers import matmul_t


def relative(ours: jax.Array, exact: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inner", "outer"), [(16, 48), (48, 16), (3, 5)])
def test_gradients_of_low_precision_products(inner: int, outer: int, dtype: str) -> None:
    """The smaller of the weight gradient's operands is transposed, so both orders of sizes occur."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4, 9, inner)).astype(dtype)
    w = jax.random.normal(keys[1], (2, outer, inner))
    g = jax.random.normal(keys[2], (4, 9, 2, outer))
    dx, dw = jax.jit(lambda x, w, g: jax.vjp(lambda x, w: matmul_t(x, w, "bfloat16"), x, w)[1](g))(x, w, g)
    x64, w64, g64 = (np.asarray(a, np.float64) for a in (x, w, g))
    chex.assert_type([dx, dw], [dtype, "float32"])
    assert relative(dw, np.einsum("btmo,bti->moi", g64, x64)) < 0.01
    assert relative(dx, np.einsum("btmo,moi->bti", g64, w64)) < 0.01


def test_the_gradient_of_a_product_of_products() -> None:
    """Here the inner product is needed for the outer weight's gradient alone, which reads it transposed."""
    keys = jax.random.split(jax.random.key(1), 4)
    x, table = jax.random.normal(keys[0], (612, 768)), jax.random.normal(keys[1], (768, 64))
    w, g = jax.random.normal(keys[2], (256, 64)), jax.random.normal(keys[3], (612, 256))

    def gradient(operands: str) -> jax.Array:
        def total(w: jax.Array, x: jax.Array, table: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.vdot(matmul_t(matmul_t(x, table.T, operands), w, operands), g)

        return jax.jit(jax.grad(total))(w, x, table, g)

    assert relative(gradient("bfloat16"), np.asarray(gradient("float32"), np.float64)) < 0.03

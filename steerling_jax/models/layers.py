"""Layers that model families share (Flax Linen). Weights are (out, in), as published."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from steerling_jax.models.compute import Compute
from steerling_jax.parallel.mesh import constrain, current_mesh


def matmul_t(x: jax.Array, w: jax.Array, operands: str) -> jax.Array:
    """`x @ w.T` for x (..., K) and w (N, K) or (M, N, K), to (..., N) or (..., M, N): operands in dtype `operands`,
    products accumulated in float32.

    Gradients are computed the same way, so that a low-precision matrix unit is used in both directions.
    """
    out = w.shape[:-1]
    # Several maps as one product, or XLA's CPU backend would transpose the weight in every call. On a mesh they stay
    # apart, since each is sharded by itself.
    if current_mesh() is None:
        w = w.reshape(-1, w.shape[-1])
    exact = x.dtype == w.dtype == jnp.dtype(operands) == jnp.float32
    y: Any = _dot_t(x, w) if exact else _low_precision_matmul_t(x, w, operands)
    return y.reshape(*x.shape[:-1], *out)


def _dot_t(x: jax.Array, w: jax.Array) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    out = lax.dot_general(rows, w, (((1,), (w.ndim - 1,)), ((), ())), preferred_element_type=jnp.float32)
    return out.reshape(*x.shape[:-1], *w.shape[:-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _low_precision_matmul_t(x: jax.Array, w: jax.Array, operands: str) -> jax.Array:
    return _dot_t(x.astype(operands), w.astype(operands))


def _matmul_forward(x, w, operands):
    return _low_precision_matmul_t(x, w, operands), (x, w)


def _matmul_backward(operands, saved, g):
    x, w = saved
    g_rows = g.reshape(-1, *w.shape[:-1])
    outputs = tuple(range(w.ndim - 1))
    dx = lax.dot_general(
        g_rows.astype(operands),
        w.astype(operands),
        ((tuple(axis + 1 for axis in outputs), outputs), ((), ())),
        preferred_element_type=jnp.float32,
    )
    rows = x.reshape(-1, x.shape[-1])
    if current_mesh() is None:
        dw = lax.platform_dependent(
            g_rows, rows, cpu=partial(_weight_gradient_on_cpu, operands=operands), default=_weight_gradient
        )
    else:
        dw = _weight_gradient(g_rows, rows)
    return dx.reshape(x.shape).astype(x.dtype), dw.astype(w.dtype)


def _weight_gradient(g: jax.Array, x: jax.Array) -> jax.Array:
    """`g.T @ x`, (..., N, K) float32, for g (R, ..., N) and x (R, K), in the dtype of x."""
    return lax.dot_general(g.astype(x.dtype), x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _weight_gradient_on_cpu(g: jax.Array, x: jax.Array, *, operands: str) -> jax.Array:
    """The same for g (R, N), with operands in dtype `operands`.

    XLA's CPU backend has a fast low-precision product only where the left operand's rows and the right operand's
    columns lie as `dot` reads them. It moves a transpose into the product, whose operands it then widens to float32:
    2.4 times as slow. So the smaller operand is transposed in memory first, which the layout constraint enforces (a
    barrier alone would only relabel the axes).
    """
    if x.shape[1] > g.shape[1]:
        return _dot(_transposed(g).astype(operands), x.astype(operands))
    return _dot(_transposed(x).astype(operands), g.astype(operands)).T


def _transposed(a: jax.Array) -> jax.Array:
    """a.T in row-major memory."""
    # The first barrier keeps the transpose out of the product that a may come from, the second out of the one to come.
    return lax.optimization_barrier(_row_major(lax.optimization_barrier(a).T))


def _row_major(a: jax.Array) -> jax.Array:
    return with_layout_constraint(a, Layout((0, 1)))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    dimensions = (((1,), (0,)), ((), ()))
    return _row_major(lax.dot_general(_row_major(a), _row_major(b), dimensions, preferred_element_type=jnp.float32))


_low_precision_matmul_t.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """`x @ weight.T (+ bias)`: x (..., in) to (..., out) in the compute dtype.

    With features (m, out) it computes m maps of the same input, to (..., m, out), so that each map can be sharded over
    devices in the same way.
    """

    features: int | tuple[int, int]
    compute: Compute
    use_bias: bool = False
    residual_layers: int | None = None  # layers of the stack, for a projection that writes to the residual stream

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        std = (x.shape[-1] * 2 * (self.residual_layers or 0.5)) ** -0.5
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        weight = self.param("weight", nn.initializers.normal(std), (*features, x.shape[-1]))
        y = matmul_t(x, weight, self.compute.operands)
        if self.has_variable("params", "lora_down"):  # as `lora.with_adapters` puts them there
            down, up = (self.get_variable("params", name) for name in ("lora_down", "lora_up"))
            y = y + matmul_t(matmul_t(x, down, self.compute.operands), up, self.compute.operands)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, features)
            y = y + last_axis(bias.astype(y.dtype), y.ndim)
        return y.astype(self.compute.dtype)


def last_axis(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector shaped to broadcast over the last of `ndim` axes (rank promotion is an error here)."""
    return vector.reshape((1,) * (ndim - vector.ndim) + vector.shape)


def output_logits(weight: jax.Array, features: jax.Array, compute: Compute) -> jax.Array:
    """features (..., D) to logits (..., V) float32 by the output projection (V, D); rounded to the compute dtype first
    under faithful rounding."""
    # First as it is stored, or the compiler would lay a tied embedding out for this product and gather it for every
    # other use; then each device's own shard of the vocabulary; then that shard with its whole width.
    for axes in (("vocab", "embed"), ("logits", "embed"), ("logits", None)):
        weight = constrain(weight, axes)
    logits = matmul_t(features, weight, compute.operands)
    logits = constrain(logits, ("batch", *(None,) * (logits.ndim - 2), "logits"))
    return logits.astype(compute.dtype).astype(jnp.float32) if compute.faithful_rounding else logits

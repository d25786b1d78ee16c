"""The transformer's layers (Flax Linen). Weights are (out, in), as published.

Legend: B batch, T positions, S cached positions, D width, H heads, G key/value heads, d head size, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from steerling_jax.config import Compute, ModelConfig
from steerling_jax.mesh import current_mesh

Cache = tuple[jax.Array, jax.Array]  # keys and values, each (B, S, G, d)
AttentionPattern = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q, k, v to the attended values


def matmul_t(x: jax.Array, w: jax.Array, operands: str) -> jax.Array:
    """`x @ w.T` for x (..., K) and w (N, K) or (M, N, K), to (..., N) or (..., M, N): operands in dtype `operands`,
    products accumulated in float32.

    Gradients are computed the same way, so that a low-precision matrix unit is used in both directions.
    """
    out = w.shape[:-1]
    if current_mesh() is None:  # two maps as one, or a CPU would turn the weight round each time
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
    dx = lax.dot_general(g_rows.astype(operands), w.astype(operands),
                         ((tuple(axis + 1 for axis in outputs), outputs), ((), ())),
                         preferred_element_type=jnp.float32)  # fmt: skip
    # In the dtype that x was kept in: no slower on any backend, and on a CPU twice as fast as narrow transposed
    # operands.
    dw = lax.dot_general(g_rows.astype(x.dtype), x.reshape(-1, x.shape[-1]), (((0,), (0,)), ((), ())),
                         preferred_element_type=jnp.float32)  # fmt: skip
    return dx.reshape(x.shape).astype(x.dtype), dw.astype(w.dtype)


_low_precision_matmul_t.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """`x @ weight.T (+ bias)`: x (..., in) to (..., out) in the compute dtype.

    features (m, out) are m maps of the same input side by side, to (..., m, out): each can be split over devices alike.
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
            y = y + _last(bias.astype(y.dtype), y.ndim)
        return y.astype(self.compute.dtype)


class Norm(nn.Module):
    """RMSNorm (weight applied in float32, then cast back) or LayerNorm (whose epsilon is always 1e-5), over the
    last axis.
    """

    config: ModelConfig
    init_gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.constant(self.init_gain), (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        if self.config.use_rms_norm:
            scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
            return (_last(weight, x.ndim) * (wide * scale)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        return (_last(weight, x.ndim) * (centred * scale) + _last(bias, x.ndim)).astype(x.dtype)


def _last(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector shaped to broadcast over the last of `ndim` axes (rank promotion is an error here)."""
    return vector.reshape((1,) * (ndim - vector.ndim) + vector.shape)


def rope_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, each (..., T, d) float32, for absolute `positions` (..., T): half-split rotation."""
    d = config.head_dim
    frequency = config.rope_base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
    angle = positions.astype(jnp.float32)[..., None] * _last(frequency, positions.ndim + 1)
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(config: ModelConfig, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x (B, T, heads, d) by tables (T, d) or (B, T, d); in float32 when the config asks for full precision."""
    wide = x.astype(jnp.float32) if config.rope_full_precision else x
    cos, sin = (t.reshape((-1, t.shape[-2], 1, t.shape[-1])).astype(wide.dtype) for t in (cos, sin))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (wide * cos + turned * sin).astype(x.dtype)


def block_causal_mask(q_positions: jax.Array, k_positions: jax.Array, block: int) -> jax.Array:
    """Boolean (Tq, Tk): a query sees its own diffusion block and all earlier ones, on absolute positions."""
    return (q_positions // block)[:, None] >= (k_positions // block)[None, :]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Grouped scaled dot-product attention with a float32 softmax.

    q (B, T, H, d), k and v (B, S, G, d), mask broadcastable to (B, T, S) or None for all. Returns (B, T, H, d) in q's
    dtype.
    """
    B, T, H, d = q.shape
    G = k.shape[2]
    grouped = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(B, T, G, H // G, d)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask.reshape((-1, 1, 1, *mask.shape[-2:])), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bghts,bsgd->btghd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(B, T, H, d).astype(q.dtype)


class Attention(nn.Module):
    """Block-causal self-attention with grouped queries, clipped projections, per-head norms and rotary positions."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, rope: Any, mask: jax.Array | AttentionPattern | None, cache: Cache | None
    ) -> tuple[jax.Array, Cache]:
        """x (B, T, D); rope tables of these positions; mask (T, S + T) or (B, T, S + T), or a function (q, k, v) that
        attends in a pattern of its own; cache of S earlier positions.

        Returns the output (B, T, D) and the keys and values of these T positions.
        """
        c, (B, T, D) = self.config, x.shape
        H, G, d = c.n_head, c.kv_heads, c.head_dim
        # Published as one fused weight. Apart, each splits over devices by whole heads (sharding.py).
        q = Linear(D, self.compute, c.use_bias, name="c_q")(x)
        kv = Linear((2, G * d), self.compute, c.use_bias, name="c_kv")(x)
        if c.clip_qkv is not None:
            q, kv = (jnp.clip(a, -c.clip_qkv, c.clip_qkv) for a in (q, kv))
        q, kv = q.reshape(B, T, H, d), kv.reshape(B, T, 2, G, d)
        k, v = kv[:, :, 0], kv[:, :, 1]
        if c.use_qk_norm:
            q, k = Norm(c, name="q_norm")(q), Norm(c, name="k_norm")(k)
        if c.use_rope:
            q, k = apply_rope(c, q, *rope), apply_rope(c, k, *rope)
        fresh = (k, v)
        if cache is not None:
            k, v = (
                jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in zip(cache, fresh, strict=True)
            )
        y = attend(q, k, v, mask) if mask is None or isinstance(mask, jax.Array) else mask(q, k, v)
        y = y.reshape(B, T, D)
        return Linear(D, self.compute, c.use_bias, c.n_layers, name="c_proj")(y), fresh


class MLP(nn.Module):
    """SwiGLU (`silu(gate) * up`, up first in the weight (2, F, D)) or a plain two-layer network (1, F, D)."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        swiglu = c.mlp_type == "swiglu"
        h = Linear((1 + swiglu, c.mlp_width), self.compute, c.use_bias, name="c_fc")(x)
        if swiglu:
            h = jax.nn.silu(h[..., 1, :]) * h[..., 0, :]
        else:
            h = {"gelu": partial(jax.nn.gelu, approximate=True), "relu": jax.nn.relu, "silu": jax.nn.silu}[
                c.activation
            ](h[..., 0, :])
        return Linear(x.shape[-1], self.compute, c.use_bias, c.n_layers, name="c_proj")(h)


class Block(nn.Module):
    """One layer: `x + norm(f(x))` (post) or `x + f(norm(x))` (pre), for attention and then the MLP."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x, rope, mask, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        c = self.config
        # A normed branch of gain 1 would drown the token's own embedding, whose scale at the start is 1/√D.
        gain = 0.1 if c.norm_order == "post" else 1.0
        ln_1, ln_2 = Norm(c, gain, name="ln_1"), Norm(c, gain, name="ln_2")
        attn, mlp = Attention(c, self.compute, name="attn"), MLP(c, self.compute, name="mlp")
        if c.norm_order == "pre":
            y, fresh = attn(ln_1(x), rope, mask, cache)
            x = x + y
            return x + mlp(ln_2(x)), fresh
        y, fresh = attn(x, rope, mask, cache)
        x = x + ln_1(y)
        return x + ln_2(mlp(x)), fresh

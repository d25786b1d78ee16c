"""Steerling's transformer layers (Flax Linen). Weights are (out, in), as published.

Legend: B batch, T positions, S cached positions, D width, H heads, G key/value heads, d head size, F inner width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from steerling_jax.models.attention import AttentionPattern, KeysValues
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import Linear, last_axis
from steerling_jax.models.steerling.config import ModelConfig


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
            return (last_axis(weight, x.ndim) * (wide * scale)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        return (last_axis(weight, x.ndim) * (centred * scale) + last_axis(bias, x.ndim)).astype(x.dtype)


def rope_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, each (..., T, d) float32, for absolute `positions` (..., T): half-split rotation."""
    d = config.head_dim
    frequency = config.rope_base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
    angle = positions.astype(jnp.float32)[..., None] * last_axis(frequency, positions.ndim + 1)
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(config: ModelConfig, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x (B, T, heads, d) by tables (T, d) or (B, T, d); in float32 when the config asks for full precision."""
    wide = x.astype(jnp.float32) if config.rope_full_precision else x
    cos, sin = (t.reshape((-1, t.shape[-2], 1, t.shape[-1])).astype(wide.dtype) for t in (cos, sin))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (wide * cos + turned * sin).astype(x.dtype)


class Attention(nn.Module):
    """Block-causal self-attention with grouped queries, clipped projections, per-head norms and rotary positions."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, rope: Any, attention: AttentionPattern, cached: Any = None
    ) -> tuple[jax.Array, KeysValues]:
        """x (B, T, D) to the output (B, T, D), and the keys and values (B, T, G, d) of these T positions.

        rope: tables of these positions, or None. attention: which keys each query sees; it also reads `cached`, this
        layer's entry of a cache, whose form is the pattern's own.
        """
        c, (B, T, D) = self.config, x.shape
        H, G, d = c.n_head, c.kv_heads, c.head_dim
        # One fused weight in published files. As two, each is sharded over devices by whole heads (sharding.py).
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
        y = attention(q, k, v) if cached is None else attention(q, k, v, cached)
        y = y.reshape(B, T, D)
        return Linear(D, self.compute, c.use_bias, c.n_layers, name="c_proj")(y), (k, v)


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
    def __call__(self, x, rope, attention: AttentionPattern, cached: Any = None) -> tuple[jax.Array, KeysValues]:
        """x (B, T, D) to the same shape, and the layer's keys and values of these positions; see `Attention`."""
        c = self.config
        # The token embedding's scale is 1/√D at the start; a normalised branch with gain 1 would drown it.
        gain = 0.1 if c.norm_order == "post" else 1.0
        ln_1, ln_2 = Norm(c, gain, name="ln_1"), Norm(c, gain, name="ln_2")
        attn, mlp = Attention(c, self.compute, name="attn"), MLP(c, self.compute, name="mlp")
        if c.norm_order == "pre":
            y, keys_values = attn(ln_1(x), rope, attention, cached)
            x = x + y
            return x + mlp(ln_2(x)), keys_values
        y, keys_values = attn(x, rope, attention, cached)
        x = x + ln_1(y)
        return x + ln_2(mlp(x)), keys_values

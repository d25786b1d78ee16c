"""Norm and gated MLP of the decoder families (Flax Linen). Weights are (out, in), with their published names.

Legend: D width, F inner width.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.layers import Linear, last_axis


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, computed in float32, in x's dtype: `x / rms(x) · weight`, or `· (1 + weight)`."""

    eps: float
    zero_centred: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initial = nn.initializers.zeros if self.zero_centred else nn.initializers.ones
        weight = self.param("weight", initial, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale * last_axis(1 + weight if self.zero_centred else weight, x.ndim)).astype(x.dtype)


def activation(config: DecoderConfig, x: jax.Array) -> jax.Array:
    """The activation of gated MLPs."""
    return {"silu": jax.nn.silu, "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True)}[config.hidden_act](x)


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) · up(x))`, of inner width `size`."""

    config: DecoderConfig
    compute: Compute
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate, up = (Linear(self.size, self.compute, c.mlp_bias, name=name)(x) for name in ("gate_proj", "up_proj"))
        hidden = activation(c, gate) * up
        return Linear(x.shape[-1], self.compute, c.mlp_bias, c.n_layers, name="down_proj")(hidden)

"""One layer of a decoder: `x + f(norm(x))` for attention (or DeltaNet) and then the MLP (or the experts).

Legend: B rows, T positions of a pass, S cached positions, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.attention import Attention, causal_mask
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.deltanet import GatedDeltaNet
from steerling_jax.models.decoder.experts import MixtureOfExperts
from steerling_jax.models.decoder.layers import GatedMLP, RMSNorm
from steerling_jax.models.decoder.rope import RopeTables, rope_tables


class PassContext(NamedTuple):
    """What all layers of a pass share. start: the pass's first position, () or (B,). rope, masks: by type of layer.
    valid: (B, T) bool, False at padding after a row's positions; None for no padding."""

    start: jax.Array | int
    rope: dict[str, RopeTables]
    masks: dict[str, jax.Array]
    valid: jax.Array | None


def pass_context(
    config: DecoderConfig, T: int, start: jax.Array | int, cached: int | None, lengths: jax.Array | None
) -> PassContext:
    """The context of a pass over T positions from `start` on; cached: positions that a cache has room for."""
    first = jnp.reshape(jnp.asarray(start, jnp.int32), (-1, 1))
    positions = first + jnp.arange(T, dtype=jnp.int32)[None]
    # In a cache, the key at index s is that of position s. Entries after a row's last position hold padding or nothing
    # yet; they are later than every query, so the causal mask hides them until they are written.
    keys = positions if cached is None else jnp.arange(cached, dtype=jnp.int32)[None]
    kinds = [kind for kind in dict.fromkeys(config.layer_types) if kind != "linear_attention"]
    windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in kinds}
    return PassContext(
        start=start,
        rope={kind: rope_tables(config.rope_of(kind), config.head_dim, positions) for kind in kinds},
        masks={kind: causal_mask(positions, keys, window) for kind, window in windows.items()},
        valid=None if lengths is None else jnp.arange(T)[None] < lengths[:, None],
    )


class Block(nn.Module):
    """Layer number `layer` of the stack."""

    config: DecoderConfig
    compute: Compute
    layer: int

    @nn.compact
    def __call__(self, x: jax.Array, context: PassContext, cached: Any) -> tuple[jax.Array, Any]:
        """x (B, T, D) to the same shape, and the layer's entry of the cache with these positions (None without)."""
        c, kind = self.config, self.config.layer_types[self.layer]

        def norm(name: str, value: jax.Array) -> jax.Array:
            return RMSNorm(c.rms_norm_eps, c.zero_centred_norms, name=name)(value)

        h = norm("input_layernorm", x)
        if kind == "linear_attention":
            y, cached = GatedDeltaNet(c, self.compute, name="linear_attn")(h, context.valid, cached)
        else:
            attention = Attention(c, self.compute, name="self_attn")
            y, cached = attention(h, context.rope[kind], context.masks[kind], context.start, cached)
        if c.has_experts(self.layer):
            mlp = MixtureOfExperts(c, self.compute, name="mlp")
        else:
            mlp = GatedMLP(c, self.compute, c.intermediate_size, name="mlp")
        if c.output_norms:  # Gemma: the norm before the MLP has a name of its own, and each branch has one after it
            x = x + norm("post_attention_layernorm", y)
            y = mlp(norm("pre_feedforward_layernorm", x))
            return x + norm("post_feedforward_layernorm", y), cached
        x = x + y
        return x + mlp(norm("post_attention_layernorm", x)), cached

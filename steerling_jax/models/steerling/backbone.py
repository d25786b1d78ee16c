"""Token embedding, the stack of layers, the final norm: tokens (or embeddings) to hidden states.

Layers run as one compiled scan over stacked weights, for training and for whole-canvas passes. Decoding unstacks the
weights once (`unstack_layers`) and runs the same `Block` in a loop, which spares a slice of every weight each step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from steerling_jax.models.attention import AttentionPattern, block_causal_mask
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.layers import Block, Cache, Norm, rope_tables
from steerling_jax.parallel.lookup import look_up
from steerling_jax.parallel.mesh import constrain

Params = dict[str, Any]
POSITIONS = ("batch", None, None)  # logical axes of (B, T, D)


class LayerEdit(Protocol):
    """Something done to the hidden states between layers."""

    def apply(self, x: jax.Array, number: jax.Array | int) -> jax.Array:
        """x (B, T, D) after the layer with this 1-based number, to what the next layer reads."""
        ...


@struct.dataclass
class Injection:
    """Steering: `x += alpha * direction` after every layer whose 1-based number is at least `layer`.

    direction (B, T, D), zero where nothing is injected; alpha (B,) float32; layer () int32.
    """

    direction: jax.Array
    alpha: jax.Array
    layer: jax.Array

    def apply(self, x: jax.Array, number: jax.Array | int) -> jax.Array:
        """x (B, T, D) after the layer with this 1-based number."""
        alpha = jnp.where(number >= self.layer, self.alpha, 0.0)[:, None, None]
        return (x + (alpha * self.direction.astype(jnp.float32)).astype(x.dtype)).astype(x.dtype)


class Layers(nn.Module):
    """All layers as one scan; parameters carry a leading layer axis."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x, rope, mask, cache: Cache | None, injection: LayerEdit | None, keep_cache: bool):
        """Returns x (B, T, D) and, with `keep_cache`, the layers' fresh keys and values, each (L, B, T, G, d)."""

        def layer(block: Block, x, per_layer):
            number, cache = per_layer
            x, fresh = block(x, rope, mask, cache)
            if injection is not None:
                x = injection.apply(x, number)
            return constrain(x, POSITIONS), fresh if keep_cache else None

        if callable(mask):
            mask = jax.tree_util.Partial(mask)  # remat takes arguments apart, and a plain function has no parts
        block = nn.remat(Block) if self.compute.remat else Block
        scan = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.config.n_layers)
        return scan(
            block(self.config, self.compute, name="blocks"), x, (jnp.arange(1, self.config.n_layers + 1), cache)
        )


def embed_tokens(params: Params, tokens: jax.Array, compute: Compute) -> jax.Array:
    """tokens (B, T) int to embeddings (B, T, D) in the compute dtype."""
    return look_up(params["tok_emb"]["weight"], tokens, compute.dtype)


def run_backbone(
    params: Params,
    x: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    positions: jax.Array | None = None,
    mask: jax.Array | AttentionPattern | None = None,
    cache: Cache | None = None,
    injection: LayerEdit | None = None,
    keep_cache: bool = False,
) -> tuple[jax.Array, Cache | None]:
    """Embeddings x (B, T, D) to hidden states (B, T, D) after the final norm.

    positions: absolute, (T,) or (B, T); default 0…T−1. mask: (T, S + T) or (B, T, S + T), True where attention may
    look; default block-causal over `positions` (T,). cache: keys and values of S earlier positions, each (L, B, S, G,
    d) (a tuple of L pairs when layers are unstacked). Also returns the fresh keys and values when `keep_cache`.
    """
    if mask is None and positions is None and compute.attention == "splash":
        from steerling_jax.models.splash_attention import attend_block_causal  # Pallas is slow to import

        mask = partial(attend_block_causal, block=config.diff_block_size)
    if positions is None:
        positions = jnp.arange(x.shape[1])
    if mask is None:
        mask = block_causal_mask(positions, positions, config.diff_block_size)
    rope = rope_tables(config, positions) if config.use_rope else None
    blocks = params["blocks"]
    if isinstance(blocks, dict):
        layers = Layers(config, compute)
        x, fresh = cast(Any, layers.apply({"params": {"blocks": blocks}}, x, rope, mask, cache, injection, keep_cache))
    else:
        x, fresh = _run_unstacked(blocks, x, rope, mask, cache, injection, config, compute)
    x = cast(jax.Array, Norm(config).apply({"params": params["ln_f"]}, x))
    return constrain(x, POSITIONS), fresh if keep_cache else None


def _run_unstacked(blocks, x, rope, mask, cache, injection, config, compute):
    fresh = []
    for i, layer_params in enumerate(blocks):
        layer_cache = None if cache is None else cache[i]
        x, kv = Block(config, compute).apply({"params": layer_params}, x, rope, mask, layer_cache)
        if injection is not None:
            x = injection.apply(x, i + 1)
        x = constrain(x, POSITIONS)
        fresh.append(kv)
    return x, tuple(fresh)


def unstack_layers(params: Params) -> Params:
    """Stacked layer weights to a tuple of per-layer dicts, for decoding (a no-op where that is done)."""
    blocks = params["blocks"]
    if not isinstance(blocks, dict):
        return params
    count = jax.tree.leaves(blocks)[0].shape[0]
    return {**params, "blocks": tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(count))}


def lm_head_weight(params: Params) -> jax.Array:
    """The output projection (V, D): the token embedding when tied."""
    return params["lm_head"]["weight"] if "lm_head" in params else params["tok_emb"]["weight"]

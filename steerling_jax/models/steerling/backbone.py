"""Steerling's backbone: token embedding, the stack of layers, the final norm, and its `Backbone`.

Layers run as one compiled scan over stacked weights, for training and for whole-canvas passes. Decoding unstacks the
weights once (`unstack_layers`) and runs the same `Block` in a loop, which spares a slice of every weight each step.

Legend: B rows, T positions of a pass, S cached positions, D width, L layers, G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from steerling_jax.models.attention import AttentionPattern, KeysValues, attend_masked, attend_parts, block_causal_mask
from steerling_jax.models.backbone import Backbone, Cache, Params, PassResult, through_bottleneck
from steerling_jax.models.batching import padding_mask
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit, apply_edits
from steerling_jax.models.layers import output_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.layers import Block, Norm, rope_tables
from steerling_jax.parallel.lookup import look_up
from steerling_jax.parallel.mesh import constrain

POSITIONS = ("batch", None, None)  # logical axes of (B, T, D)

# Keys and values of earlier positions, one pair a layer, each (…, G, S, d): heads come before positions, so that
# attention reads them as they lie.
KeyValueCache = tuple[KeysValues, ...]


class Layers(nn.Module):
    """All layers and the final norm; the layers' parameters carry a leading layer axis and run as one scan."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rope: Any,
        attention: AttentionPattern,
        cache: Any = None,
        edits: Sequence[LayerEdit] = (),
        capture: tuple[int, ...] = (),
        keep_cache: bool = False,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """x (B, T, D) to hidden states (B, T, D); with `keep_cache` the keys and values of all layers, each
        (L, B, T, G, d); and the outputs of the layers in `capture`, (captured, B, T, D).

        cache: a pytree whose leaves have a leading layer axis.
        """
        L = self.config.n_layers
        # Layer to its place among the captured ones; the others' place is outside, and their outputs are dropped.
        places = jnp.full(L, len(capture), jnp.int32).at[jnp.array(capture, jnp.int32)].set(jnp.arange(len(capture)))

        def layer(block: Block, carry, per_layer):
            (x, captured), (number, cached) = carry, per_layer
            x, keys_values = block(x, rope, attention, cached)
            x = constrain(apply_edits(x, number, edits), POSITIONS)
            if captured is not None:
                captured = captured.at[places[number]].set(x, mode="drop")
            return (x, captured), keys_values if keep_cache else None

        block = nn.remat(Block) if self.compute.remat else Block
        scan = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=L,
            unroll=L if self.compute.unroll else 1,
        )
        captured = jnp.zeros((len(capture), *x.shape), x.dtype) if capture else None
        (x, captured), fresh = scan(
            block(self.config, self.compute, name="blocks"), (x, captured), (jnp.arange(L), cache)
        )
        return constrain(Norm(self.config, name="ln_f")(x), POSITIONS), fresh, captured


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
    attention: jax.Array | AttentionPattern | None = None,
    cache: Any = None,
    edits: Sequence[LayerEdit] = (),
    capture: tuple[int, ...] = (),
    keep_cache: bool = False,
) -> PassResult:
    """Embeddings x (B, T, D) to hidden states (B, T, D) after the final norm.

    positions: absolute, (T,) or (B, T); default 0…T−1. attention: a mask (T, S + T) or (B, T, S + T), True where a
    query sees a key, or a pattern of its own; default block-causal over `positions` (T,). cache: what the pattern
    reads, by layer: leaves with a leading layer axis, or a tuple of L entries where layers are unstacked; masks take
    keys and values (B, S, G, d). edits: changes to the layers' outputs, in their order. capture: layers whose outputs
    are returned. keep_cache: return the keys and values of these positions, each (B, T, G, d), in the form of `cache`.
    """
    if attention is None and positions is None and compute.attention == "splash":
        from steerling_jax.models.splash_attention import attend_block_causal  # Pallas is slow to import

        attention = partial(attend_block_causal, block=config.diff_block_size)
    if positions is None:
        positions = jnp.arange(x.shape[1])
    if attention is None:
        attention = block_causal_mask(positions, positions, config.diff_block_size)
    if isinstance(attention, jax.Array):
        attention = jax.tree_util.Partial(attend_masked, mask=attention)
    elif not isinstance(attention, jax.tree_util.Partial):
        attention = jax.tree_util.Partial(attention)  # remat takes arguments apart, and a plain function has no leaves
    rope = rope_tables(config, positions) if config.use_rope else None
    run = _run_stacked if isinstance(params["blocks"], dict) else _run_unstacked
    hidden, fresh, captured = run(params, x, rope, attention, cache, edits, capture, keep_cache, config, compute)
    outputs = {} if captured is None else {layer: captured[place] for place, layer in enumerate(capture)}
    return PassResult(through_bottleneck(params, hidden), fresh if keep_cache else None, outputs)


def _run_stacked(params, x, rope, attention, cache, edits, capture, keep_cache, config, compute):
    variables = {"params": {name: params[name] for name in ("blocks", "ln_f")}}
    module = Layers(config, compute)
    return cast(Any, module.apply(variables, x, rope, attention, cache, tuple(edits), capture, keep_cache))


def _run_unstacked(params, x, rope, attention, cache, edits, capture, keep_cache, config, compute):
    fresh, outputs = [], {}
    for number, layer_params in enumerate(params["blocks"]):
        cached = None if cache is None else cache[number]
        x, keys_values = Block(config, compute).apply({"params": layer_params}, x, rope, attention, cached)
        x = constrain(apply_edits(x, number, edits), POSITIONS)
        fresh.append(keys_values)
        if number in capture:
            outputs[number] = x
    x = constrain(cast(jax.Array, Norm(config).apply({"params": params["ln_f"]}, x)), POSITIONS)
    return x, tuple(fresh), [outputs[layer] for layer in capture] or None


def unstack_layers(params: Params) -> Params:
    """Stacked layer weights to a tuple of per-layer dicts, for decoding; unstacked ones stay as they are."""
    blocks = params["blocks"]
    if not isinstance(blocks, dict):
        return params
    count = jax.tree.leaves(blocks)[0].shape[0]
    return {**params, "blocks": tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(count))}


def lm_head_weight(params: Params) -> jax.Array:
    """The output projection (V, D): the token embedding when tied."""
    return params["lm_head"]["weight"] if "lm_head" in params else params["tok_emb"]["weight"]


def lm_logits(params: Params, features: jax.Array, compute: Compute) -> jax.Array:
    """features (..., D) to logits (..., V) float32; rounded to the compute dtype first under faithful rounding."""
    return output_logits(lm_head_weight(params), features, compute)


def empty_cache(config: ModelConfig, compute: Compute, leading: tuple[int, ...], length: int) -> KeyValueCache:
    """Room for the keys and values of `length` positions, each (*leading, G, length, d)."""
    shape = (*leading, config.kv_heads, length, config.head_dim)
    return tuple((jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype)) for _ in range(config.n_layers))


@lru_cache(maxsize=64)  # one object a configuration: compiled programs are found again by it
def steerling_backbone(config: ModelConfig, compute: Compute) -> Backbone:
    """The `Backbone` of a Steerling configuration.

    With a cache, a pass takes whole diffusion blocks, since the keys and values of a block are final only with all of
    its tokens; so do the lengths of rows. Logits are those of hidden states, without the concept heads (`decompose` has
    these).
    """

    def run(
        params: Params,
        x: jax.Array,
        *,
        start: jax.Array | int = 0,
        lengths: jax.Array | None = None,
        cache: Cache | None = None,
        edits: tuple[LayerEdit, ...] = (),
        capture: tuple[int, ...] = (),
    ) -> PassResult:
        B, T, _ = x.shape
        if cache is None:
            mask = None if lengths is None else padding_mask(lengths, T, config.diff_block_size)
            return run_backbone(params, x, config=config, compute=compute, attention=mask, edits=edits, capture=capture)
        S, starts = cache[0][0].shape[2], jnp.broadcast_to(jnp.asarray(start), B)
        positions = starts[:, None] + jnp.arange(T)[None, :]
        own = jax.vmap(partial(block_causal_mask, block=config.diff_block_size))(positions, positions)
        if lengths is not None:
            own &= (jnp.arange(T)[None, :] < lengths[:, None])[:, None, :]
        attention = jax.tree_util.Partial(attend_parts, own=own, visible=[jnp.arange(S)[None, :] < starts[:, None]])
        result = run_backbone(
            unstack_layers(params),
            x,
            config=config,
            compute=compute,
            positions=positions,
            attention=attention,
            cache=tuple((pair,) for pair in cache),
            edits=edits,
            capture=capture,
            keep_cache=True,
        )
        return result._replace(cache=jax.vmap(write_positions)(cache, heads_first(result.cache), starts))

    return Backbone(
        n_layers=config.n_layers,
        width=config.n_embd,
        vocab_size=config.vocab_size,
        embed=lambda params, tokens: embed_tokens(params, tokens, compute),
        run=run,
        logits=lambda params, hidden: lm_logits(params, hidden, compute),
        empty_cache=lambda rows, positions: empty_cache(config, compute, (rows,), positions),
    )


def heads_first(fresh: KeyValueCache) -> KeyValueCache:
    """Keys and values of a pass, each (B, T, G, d), to the cache's order of axes, (B, G, T, d)."""
    return jax.tree.map(lambda new: jnp.swapaxes(new, 1, 2), fresh)


def write_positions(cache: KeyValueCache, fresh: KeyValueCache, start: jax.Array | int) -> KeyValueCache:
    """The cache, each (…, G, S, d), with keys and values (…, G, T, d) at the positions from `start` on."""

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=old.ndim - 2)

    return jax.tree.map(write, cache, fresh)

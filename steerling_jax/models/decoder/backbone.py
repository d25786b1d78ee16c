"""The `Backbone` of the decoder families: embedding, layers, final norm, logits, and fresh parameters.

Layers are separate entries of the parameters, as in the published files, and run in a Python loop: a decoding step then
reads every weight where it is, without slicing a stack of layers, and each layer may differ from the others.

Legend: B rows, T positions of a pass, S cached positions, D width, G key/value heads, d head size.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Backbone, Cache, Params, PassResult, through_bottleneck
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.block import Block, pass_context
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.deltanet import empty_state
from steerling_jax.models.decoder.layers import RMSNorm
from steerling_jax.models.decoder.scan import scan_periods
from steerling_jax.models.edits import LayerEdit, apply_edits
from steerling_jax.models.layers import last_axis, output_logits
from steerling_jax.parallel.lookup import look_up
from steerling_jax.parallel.mesh import constrain, current_mesh

POSITIONS = ("batch", None, None)  # logical axes of (B, T, D)


@lru_cache(maxsize=64)  # one object a configuration: compiled programs are found again by it
def decoder_backbone(config: DecoderConfig, compute: Compute) -> Backbone:
    """The `Backbone` of a decoder configuration."""
    return Backbone(
        n_layers=config.n_layers,
        width=config.width,
        vocab_size=config.vocab_size,
        embed=partial(_embed, config=config, compute=compute),
        run=partial(_run, config=config, compute=compute),
        logits=partial(_logits, config=config, compute=compute),
        empty_cache=partial(empty_cache, config, compute),
    )


def _embed(params: Params, tokens: jax.Array, *, config: DecoderConfig, compute: Compute) -> jax.Array:
    x = look_up(params["embed_tokens"]["weight"], tokens, compute.dtype)
    # The factor is rounded to the compute dtype, as in the published implementation.
    return x * jnp.asarray(config.width**0.5, x.dtype) if config.scale_embeddings else x


def _run(
    params: Params,
    x: jax.Array,
    *,
    start: jax.Array | int = 0,
    cache: Cache | None = None,
    edits: tuple[LayerEdit, ...] = (),
    capture: tuple[int, ...] = (),
    lengths: jax.Array | None = None,
    config: DecoderConfig,
    compute: Compute,
) -> PassResult:
    """See `models.backbone.Run`."""
    x = constrain(x, POSITIONS)
    context = pass_context(config, x.shape[1], start, cached_positions(config, cache), lengths)
    entries, captured, done = [], {}, 0
    if compute.remat and current_mesh() is not None and cache is None and not (edits or capture):
        x, done = _run_periods(params["layers"], x, context, config, compute)
    for layer in range(done, config.n_layers):
        cached = None if cache is None else cache[layer]
        x, entry = _run_block(params["layers"][str(layer)], x, context, cached, Block(config, compute, layer))
        x = constrain(apply_edits(x, layer, edits), POSITIONS)
        entries.append(entry)
        if layer in capture:
            captured[layer] = x
    hidden: Any = RMSNorm(config.rms_norm_eps, config.zero_centred_norms).apply({"params": params["norm"]}, x)
    hidden = constrain(through_bottleneck(params, hidden), POSITIONS)
    return PassResult(hidden, None if cache is None else tuple(entries), captured)


def _run_periods(
    layers: Params, x: jax.Array, context: Any, config: DecoderConfig, compute: Compute
) -> tuple[jax.Array, int]:
    """x after all whole periods of layers, and the number of these layers."""

    def run_layer(params: Params, x: jax.Array, place: int) -> jax.Array:
        return constrain(_run_block(params, x, context, None, Block(config, compute, place))[0], POSITIONS)

    return scan_periods(layers, x, config.period, run_layer)


def final_norm_gain(params: Params, x: jax.Array, config: DecoderConfig) -> jax.Array:
    """What the final norm multiplies the last block's output x (…, D) by, (…, D) float32: weight / rms(x)."""
    wide, weight = x.astype(jnp.float32), params["norm"]["weight"].astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.rms_norm_eps)
    return scale * last_axis(1 + weight if config.zero_centred_norms else weight, x.ndim)


def _run_block(params: Params, x: jax.Array, context: Any, cached: Any, block: Block) -> tuple[jax.Array, Any]:
    def apply(params: Params, x: jax.Array, context: Any, cached: Any) -> Any:
        return block.apply({"params": params}, x, context, cached)

    return (jax.checkpoint(apply) if block.compute.remat else apply)(params, x, context, cached)


def output_table(params: Params) -> jax.Array:
    """The output projection (V, D): the token embedding when tied."""
    return params["lm_head" if "lm_head" in params else "embed_tokens"]["weight"]


def _logits(params: Params, hidden: jax.Array, *, config: DecoderConfig, compute: Compute) -> jax.Array:
    logits = output_logits(output_table(params), hidden, compute)
    return logits if config.final_cap is None else config.final_cap * jnp.tanh(logits / config.final_cap)


def empty_cache(config: DecoderConfig, compute: Compute, rows: int, positions: int) -> Cache:
    """The cache by layer: room for the keys and values of `positions` positions, each (rows, G, positions, d), or the
    state of a DeltaNet layer."""
    shape = (rows, config.num_key_value_heads, positions, config.head_dim)

    def entry(kind: str) -> Any:
        if kind == "linear_attention":
            assert config.linear is not None
            return empty_state(config.linear, compute, rows)
        return jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype)

    return tuple(entry(kind) for kind in config.layer_types)


def cached_positions(config: DecoderConfig, cache: Cache | None) -> int | None:
    """The positions that a cache has room for; None without a cache, and 0 where no layer has keys."""
    if cache is None:
        return None
    pairs = zip(config.layer_types, cache, strict=True)
    return next((entry[0].shape[2] for kind, entry in pairs if kind != "linear_attention"), 0)


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters: weights normal with variance 1 / fan-in, output projections of layers scaled down by
    √(2L).
    """
    D, compute = config.width, Compute()
    x, context = jnp.zeros((1, 1, D)), pass_context(config, 1, 0, None, None)
    keys = jax.random.split(key, config.n_layers + 2)

    def table(key: jax.Array) -> Params:
        return {"weight": jax.random.normal(key, (config.vocab_size, D)) * D**-0.5}

    layers = {
        str(layer): Block(config, compute, layer).init(keys[layer], x, context, None)["params"]
        for layer in range(config.n_layers)
    }
    params = {"embed_tokens": table(keys[-1]), "layers": layers}
    params["norm"] = RMSNorm(config.rms_norm_eps, config.zero_centred_norms).init(keys[0], x)["params"]
    return params if config.tie_word_embeddings else params | {"lm_head": table(keys[-2])}


@lru_cache(maxsize=8)
def param_shapes(config: DecoderConfig) -> Params:
    """The parameter tree as ShapeDtypeStructs, without building anything."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

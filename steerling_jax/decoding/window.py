"""One pass of the layers over whole attention blocks of a canvas, with the keys and values of earlier blocks cached.

Legend: B rows of a batch (requests), X rows of a pass (B, times branches N under guidance, times drafts K, in that
order), T positions, W the diffusion block, S cached positions, L layers, G key/value heads, d head size, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params, embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.layers import Cache

_NEVER = -1e30  # finite, for a part of which nothing may be seen
LayerCaches = tuple[Cache, ...]  # keys and values, one pair a layer


class CachedPart(NamedTuple):
    """Keys and values from before the pass: caches, each (B·N, G, S, d) or (X, G, S, d), and which positions may be
    seen, (B·N or X, S) bool. Where there are fewer cached rows than rows of the pass, drafts share them."""

    caches: LayerCaches
    visible: jax.Array


@struct.dataclass
class Injected:
    """Steering of a pass: what is added after each layer where the canvas is masked, and over the prompt.

    masked, in_prompt (X, T) bool; at_masks, at_prompt (B, L, D) float32, row l for the layer numbered l + 1.
    """

    masked: jax.Array
    in_prompt: jax.Array
    at_masks: jax.Array
    at_prompt: jax.Array

    def apply(self, x: jax.Array, number: jax.Array | int) -> jax.Array:
        """x (X, T, D) after the layer with this 1-based number."""
        X, _, D = x.shape
        for where, table in ((self.masked, self.at_masks), (self.in_prompt, self.at_prompt)):
            added = table[:, number - 1][:, None, :]
            added = jnp.broadcast_to(added, (added.shape[0], X // added.shape[0], D)).reshape(X, 1, D)
            x = x + jnp.where(where[:, :, None], added, 0.0).astype(x.dtype)
        return x


def injected_on(
    canvases: jax.typing.ArrayLike,
    prompt: jax.typing.ArrayLike,
    mask_id: jax.typing.ArrayLike,
    at_masks: jax.typing.ArrayLike,
    at_prompt: jax.typing.ArrayLike,
) -> Injected:
    """Steering of canvases (X, T) with a prompt of `prompt` tokens; tables (B, L, D)."""
    canvases = jnp.asarray(canvases)
    masked = canvases == mask_id
    in_prompt = jnp.broadcast_to(jnp.arange(canvases.shape[1])[None, :] < prompt, canvases.shape)
    return Injected(masked, in_prompt & ~masked, jnp.asarray(at_masks), jnp.asarray(at_prompt))


def empty_caches(config: ModelConfig, compute: Compute, leading: tuple[int, ...], length: int) -> LayerCaches:
    """Room for the keys and values of `length` positions, each (*leading, G, length, d)."""
    shape = (*leading, config.kv_heads, length, config.head_dim)
    return tuple((jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype)) for _ in range(config.n_layers))


def run_window(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    total: jax.Array,
    earlier: list[CachedPart],
    injected: Injected,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, LayerCaches]:
    """Tokens (X, T) of whole attention blocks at absolute `positions` (X, T), to hidden (X, T, D) and their keys and
    values, each (X, G, T, d).

    total (X,): length of each canvas; what lies past it is not there. Layers are unstacked (`unstack_layers`).
    """
    numbers = positions // config.diff_block_size
    own = (numbers[:, :, None] >= numbers[:, None, :]) & (positions < total[:, None])[:, None, :]
    attention = _CachedAttention(earlier, own)
    hidden, fresh = run_backbone(
        params,
        embed_tokens(params, tokens, compute),
        config=config,
        compute=compute,
        positions=positions,
        mask=attention,
        injection=injected,
        keep_cache=True,
    )
    return hidden, jax.tree.map(lambda new: jnp.swapaxes(new, 1, 2), cast(LayerCaches, fresh))


class _CachedAttention:
    """An attention function for `run_backbone`: over earlier keys, layer by layer, and the pass's own under `own`
    (X, T, T).

    Each part has its own softmax, and the parts are merged: the cache is neither copied nor turned in any step.
    """

    def __init__(self, earlier: list[CachedPart], own: jax.Array):
        # Layers run in order: each call is the next one.
        self.layers: Iterator = zip(*(part.caches for part in earlier), strict=True)
        self.biases = [_bias(part.visible)[:, None, None, :] for part in earlier]
        self.own = _bias(own)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """q (X, T, H, d), k and v (X, T, G, d), to (X, T, H, d)."""
        X, T, H, d = q.shape
        G = k.shape[2]
        M = H // G * T
        rows = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(X, T, G, H // G, d)
        rows = jnp.moveaxis(rows, 1, 3).reshape(X, G, M, d)  # (head in group, T)
        own = jnp.broadcast_to(self.own[:, None, None], (X, 1, H // G, T, T)).reshape(X, 1, M, T)
        parts = [_attend(rows, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), own)]
        for (keys, values), bias in zip(next(self.layers), self.biases, strict=True):
            parts.append(_attend_shared(rows, keys, values, bias))
        top = parts[0].top
        for part in parts[1:]:
            top = jnp.maximum(top, part.top)
        mass, out = jnp.zeros(()), jnp.zeros(())
        for part in parts:
            scale = jnp.exp(part.top - top)
            mass, out = mass + part.mass * scale, out + part.out * scale
        out = out / mass
        return jnp.moveaxis(out.reshape(X, G, H // G, T, d), 3, 1).reshape(X, T, H, d).astype(q.dtype)


class _Attended(NamedTuple):
    """Attention to some of the keys: largest score, sum of exp(score − top), each (X, G, M, 1), and the values so
    weighted (X, G, M, d); all float32."""

    top: jax.Array
    mass: jax.Array
    out: jax.Array


def _attend(rows: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> _Attended:
    """rows (X, G, M, d), keys and values (X, G, S, d), bias (X, 1, M or 1, S)."""
    score = jnp.einsum("xgmd,xgsd->xgms", rows, keys, preferred_element_type=jnp.float32) + bias
    top = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - top)
    mass = jnp.sum(weight, axis=-1, keepdims=True)
    out = jnp.einsum("xgms,xgsd->xgmd", weight.astype(rows.dtype), values, preferred_element_type=jnp.float32)
    return _Attended(top, mass, out)


def _attend_shared(rows: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> _Attended:
    """The same where several rows in turn share one row of keys, (X / K, G, S, d): read once for all of them."""
    X, G, M, d = rows.shape
    N = keys.shape[0]
    K = X // N
    together = jnp.swapaxes(rows.reshape(N, K, G, M, d), 1, 2).reshape(N, G, K * M, d)
    found = _attend(together, keys, values, bias)
    return _Attended(*(jnp.swapaxes(a.reshape(N, G, K, M, -1), 1, 2).reshape(X, G, M, -1) for a in found))


def _bias(visible: jax.Array) -> jax.Array:
    return jnp.where(visible, 0.0, _NEVER)

"""Attention that model families share: grouped queries with a float32 softmax, over one set of keys or several.

Legend: X rows of a pass, T positions of the pass, S cached positions, H heads, G key/value heads, d head size,
M = H / G · T queries that share a key/value head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# (q, k, v) or, in a pass with a cache, (q, k, v, the layer's entry of the cache), to the attended values.
AttentionPattern = Callable[..., jax.Array]
KeysValues = tuple[jax.Array, jax.Array]

_NEVER = -1e30  # of positions that may not be seen; finite, or a part of which nothing may be seen would give NaN


def block_causal_mask(q_positions: jax.Array, k_positions: jax.Array, block: int) -> jax.Array:
    """Boolean (Tq, Tk): a query sees its own diffusion block and all earlier ones, on absolute positions."""
    return (q_positions // block)[:, None] >= (k_positions // block)[None, :]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Grouped scaled dot-product attention with a float32 softmax.

    q (X, T, H, d), k and v (X, S, G, d), mask broadcastable to (X, T, S) or None for all. Returns (X, T, H, d) in q's
    dtype.
    """
    X, T, H, d = q.shape
    G = k.shape[2]
    grouped = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(X, T, G, H // G, d)
    scores = jnp.einsum("xtghd,xsgd->xghts", grouped, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask.reshape((-1, 1, 1, *mask.shape[-2:])), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("xghts,xsgd->xtghd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(X, T, H, d).astype(q.dtype)


def attend_masked(
    q: jax.Array, k: jax.Array, v: jax.Array, cached: KeysValues | None = None, *, mask: jax.Array
) -> jax.Array:
    """`attend` over cached keys and values (X, S, G, d), then the pass's own: mask (T, S + T) or (X, T, S + T)."""
    if cached is not None:
        k, v = (jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in zip(cached, (k, v), strict=True))
    return attend(q, k, v, mask)


def attend_parts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cached: Sequence[KeysValues],
    *,
    own: jax.Array,
    visible: Sequence[jax.Array],
) -> jax.Array:
    """Attention over cached keys and values in several parts, and the pass's own: q (X, T, H, d) to the same shape.

    k, v: (X, T, G, d). cached: each (N, G, S, d), where X / N rows of the pass in turn share one row of a part. own:
    (X, T, T) bool, which of the pass's positions each query sees. visible: of each part (N, S) bool.

    Every part has a softmax of its own, and the parts are merged by their largest scores, as in flash attention: so the
    cache, most of the keys, is neither concatenated with the new ones nor transposed, both of which would copy it in
    every layer of every step.
    """
    X, T, H, d = q.shape
    G = k.shape[2]
    M = H // G * T
    rows = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(X, T, G, H // G, d)
    rows = jnp.moveaxis(rows, 1, 3).reshape(X, G, M, d)  # (head in group, T)
    own_bias = jnp.broadcast_to(_bias(own)[:, None, None], (X, 1, H // G, T, T)).reshape(X, 1, M, T)
    parts = [_attend_part(rows, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), own_bias)]
    for (keys, values), seen in zip(cached, visible, strict=True):
        parts.append(_attend_shared(rows, keys, values, _bias(seen)[:, None, None, :]))
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
    """Attention to one part of the keys: largest score, sum of exp(score − top), each (X, G, M, 1), and the values
    weighted so, (X, G, M, d); all float32."""

    top: jax.Array
    mass: jax.Array
    out: jax.Array


def _attend_part(rows: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> _Attended:
    """rows (X, G, M, d), keys and values (X, G, S, d), bias (X, 1, M or 1, S)."""
    score = jnp.einsum("xgmd,xgsd->xgms", rows, keys, preferred_element_type=jnp.float32) + bias
    top = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - top)
    mass = jnp.sum(weight, axis=-1, keepdims=True)
    out = jnp.einsum("xgms,xgsd->xgmd", weight.astype(rows.dtype), values, preferred_element_type=jnp.float32)
    return _Attended(top, mass, out)


def _attend_shared(rows: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> _Attended:
    """The same where X / N rows in turn share one row of keys (N, G, S, d), which is read once for all of them."""
    X, G, M, d = rows.shape
    N = keys.shape[0]
    K = X // N
    together = jnp.swapaxes(rows.reshape(N, K, G, M, d), 1, 2).reshape(N, G, K * M, d)
    found = _attend_part(together, keys, values, bias)
    return _Attended(*(jnp.swapaxes(a.reshape(N, G, K, M, -1), 1, 2).reshape(X, G, M, -1) for a in found))


def _bias(visible: jax.Array) -> jax.Array:
    return jnp.where(visible, 0.0, _NEVER)

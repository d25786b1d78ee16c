"""Work on gathered rows of a table, a few columns of an index at a time: all of them would be large."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK = 8  # columns, so rows of a table for each position, at once


def over_chunks(function: Callable[[jax.Array], jax.Array], index: jax.Array) -> jax.Array:
    """`function`, from (N, n) to (N, n), over the columns of index (N, K); computed again for gradients."""
    (chunks,), pad = _chunks(index)
    out = lax.map(jax.checkpoint(function), chunks)
    out = jnp.moveaxis(out, 0, 1).reshape(index.shape[0], -1)
    return out[:, : index.shape[1]] if pad else out


def sum_chunks(
    function: Callable[[jax.Array, jax.Array], jax.Array], index: jax.Array, weights: jax.Array
) -> jax.Array:
    """The sum of `function` over chunks of the columns of index and weights (N, K); computed again for gradients."""
    chunks, _ = _chunks(index, weights)  # padding has weight 0
    body = jax.checkpoint(function)
    first = jax.eval_shape(function, *(c[0] for c in chunks))
    total, _ = lax.scan(lambda t, c: (t + body(*c), None), jnp.zeros(first.shape, first.dtype), chunks)
    return total


def _chunks(*arrays: jax.Array) -> tuple[tuple[jax.Array, ...], int]:
    """(N, K) arrays as (K / chunk, N, chunk), K padded with zeros; also the padding."""
    K = arrays[0].shape[1]
    size = min(_CHUNK, K)
    pad = -K % size
    padded = (jnp.pad(a, ((0, 0), (0, pad))) for a in arrays)
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], -1, size), 1, 0) for a in padded), pad

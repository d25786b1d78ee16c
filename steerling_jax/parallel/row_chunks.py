"""Work in chunks: on the rows of arrays, and on gathered rows of a table, which would not fit into memory at once.

For N positions with K concepts of width P each, gathering at once needs N · K · P numbers: with 4096 positions, 128
concepts and width 4096, 8 GB in float32. So the columns of the index are processed a few at a time.

Legend: N positions, K columns of an index, n columns of a chunk, P width of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK = 8  # columns of an index at once, so gathered rows for each position


def over_rows(work: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`work` on `size` rows at a time, one chunk after another; results (N, …) as arrays or a pytree of them.

    rows: arrays (N, …), or a pytree of them, of which `work` gets one like it with (size, …). The last chunk is padded
    with zeros, and what `work` makes of these rows is dropped.
    """
    N = len(jax.tree.leaves(rows)[0])

    def chunked(a: jax.Array) -> jax.Array:
        return jnp.pad(a, ((0, -N % size), *((0, 0),) * (a.ndim - 1))).reshape(-1, size, *a.shape[1:])

    results = lax.map(work, jax.tree.map(chunked, rows))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:N], results)


def over_chunks(function: Callable[[jax.Array], jax.Array], index: jax.Array) -> jax.Array:
    """`function`, from (N, n) int to (N, n), applied to the columns of index (N, K), n at a time.

    The backward pass computes it again, so that the gathered rows are not stored.
    """
    (chunks,), pad = _chunks(index)
    out = lax.map(jax.checkpoint(function), chunks)
    out = jnp.moveaxis(out, 0, 1).reshape(index.shape[0], -1)
    return out[:, : index.shape[1]] if pad else out


def sum_chunks(
    function: Callable[[jax.Array, jax.Array], jax.Array], index: jax.Array, weights: jax.Array
) -> jax.Array:
    """The sum of `function` over the chunks of the columns of index and weights (N, K).

    The backward pass computes it again, so that the gathered rows are not stored.
    """
    chunks, _ = _chunks(index, weights)  # the padding has weight 0
    body = jax.checkpoint(function)
    first = jax.eval_shape(function, *(c[0] for c in chunks))
    total, _ = lax.scan(lambda t, c: (t + body(*c), None), jnp.zeros(first.shape, first.dtype), chunks)
    return total


def _chunks(*arrays: jax.Array) -> tuple[tuple[jax.Array, ...], int]:
    """Arrays (N, K) as (K / n, N, n), with K padded with zeros to a multiple of n, and the number of padded columns."""
    K = arrays[0].shape[1]
    size = min(_CHUNK, K)
    pad = -K % size
    padded = (jnp.pad(a, ((0, 0), (0, pad))) for a in arrays)
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], -1, size), 1, 0) for a in padded), pad

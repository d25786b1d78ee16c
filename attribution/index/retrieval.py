"""Nearest chunks by brute force: every stored vector is compared, a block at a time, so that results are exact.

A block's chunks are split over the devices; each finds its own best and only those travel. On a TPU the best are taken
with `approx_max_k` at a recall of 0.99, elsewhere exactly. Two kinds of vectors: dense rows, and signatures of K
concepts, whose inner product with a query is a look-up of K weights a chunk. That takes the same time however the
concepts are spread, which lists of chunks by concept do not: the most common concepts are in most chunks.

A block is stored by entry, chunks last, so that on CPUs an entry of many chunks is added at once: a sixth of the time
of adding up chunk by chunk for signatures, half for rows, which then may stay in 16 bits (docs/benchmarks.md).

Legend: S devices, M chunks of a block on a device, D width, K entries, C concepts, k best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_RECALL = 0.99  # of approx_max_k, on TPUs
_ROUND = 1024  # block sizes are rounded up to a multiple, for few programs
_UNROLL = 16  # entries added in one round: the sums are read and written once for all of them


class Best(NamedTuple):
    """values (k,) float32, largest first; blocks, numbers (k,) int64: the block and the chunk in it. Shorter where
    there are fewer chunks."""

    values: np.ndarray
    blocks: np.ndarray
    numbers: np.ndarray


class VectorBlock(NamedTuple):
    """counts (S,) int32 of real chunks; arrays (S, D, M) of rows, or (S, K, M) of ids and of codes."""

    counts: jax.Array
    arrays: tuple[jax.Array, ...]


def place(arrays: Sequence[np.ndarray], mesh: Mesh | None = None) -> VectorBlock:
    """Arrays (N, D or K) of one block of chunks, put on the mesh's devices (default: all), chunks split over them."""
    mesh = mesh or Mesh(np.array(jax.devices()), ("data",))
    S, N = mesh.size, len(arrays[0])
    M = max(-(-N // (S * _ROUND)) * _ROUND, _ROUND)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(array: np.ndarray) -> jax.Array:
        filled = np.zeros((S * M, array.shape[1]), array.dtype)
        filled[:N] = array
        return jax.device_put(np.ascontiguousarray(filled.reshape(S, M, -1).swapaxes(1, 2)), sharding)

    counts = np.clip(N - M * np.arange(S), 0, M).astype(np.int32)
    return VectorBlock(jax.device_put(counts, sharding), tuple(put(np.asarray(array)) for array in arrays))


def place_rows(rows: np.ndarray, mesh: Mesh | None = None) -> VectorBlock:
    """Rows (N, D). Float16 on CPUs, which take twelve times as long to widen bfloat16 (measured), bfloat16
    elsewhere."""
    return place([np.asarray(rows, np.float16 if jax.default_backend() == "cpu" else jnp.bfloat16)], mesh)


def best_rows(blocks: Sequence[VectorBlock], query: np.ndarray, k: int) -> Best:
    """The k largest inner products with a query (D,)."""
    return _gather([_best_rows(block, jnp.asarray(query, jnp.float32), k=k) for block in blocks], blocks, k)


def best_signatures(blocks: Sequence[VectorBlock], weights: np.ndarray, k: int) -> Best:
    """The k largest inner products with a signature, given as weights (C + 1,), for blocks of ids (N, K), unused ones
    C, and codes (N, K) uint8 (`signatures.packed`)."""
    return _gather([_best_signatures(block, jnp.asarray(weights, jnp.float32), k=k) for block in blocks], blocks, k)


@partial(jax.jit, static_argnames="k")
def _best_rows(block: VectorBlock, query: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    (rows,) = block.arrays
    if jax.default_backend() == "cpu":
        scores = _summed(rows, lambda d: query[d] * rows[:, d].astype(jnp.float32))
    else:
        scores = jnp.einsum("sdm,d->sm", rows, query.astype(rows.dtype), preferred_element_type=jnp.float32)
    return _top(scores, block.counts, k)


@partial(jax.jit, static_argnames="k")
def _best_signatures(block: VectorBlock, weights: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    ids, codes = block.arrays
    weights = weights / 255**2  # a code stands for (code / 255)²

    def product(entry: jax.Array) -> jax.Array:
        code = codes[:, entry].astype(jnp.float32)
        return weights.at[ids[:, entry]].get(mode="promise_in_bounds") * (code * code)

    return _top(_summed(ids, product), block.counts, k)


def _summed(array: jax.Array, term: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Σ of term(i) (S, M) float32 over the entries i of an array (S, entries, M), a few in each round."""
    S, entries, M = array.shape
    return lax.fori_loop(0, entries, lambda i, total: total + term(i), jnp.zeros((S, M)), unroll=_UNROLL)


def _top(scores: jax.Array, counts: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Of scores (S, M), each device's k largest and their numbers, (S, k)."""
    scores = jnp.where(jnp.arange(scores.shape[1])[None, :] < counts[:, None], scores, -jnp.inf)
    k = min(k, scores.shape[1])
    if jax.default_backend() == "tpu":
        return jax.lax.approx_max_k(scores, k, recall_target=_RECALL)
    values, index = jax.lax.top_k(scores, k)
    return values, index


def _gather(found: Sequence[tuple[jax.Array, jax.Array]], blocks: Sequence[VectorBlock], k: int) -> Best:
    """The k best of all blocks and devices; equal values in the order of the chunks."""
    values, where, numbers = [], [], []
    for number, ((value, index), block) in enumerate(zip(found, blocks, strict=True)):
        M = block.arrays[0].shape[2]
        values.append(np.asarray(value).ravel())
        numbers.append((np.asarray(index) + M * np.arange(len(index))[:, None]).ravel())
        where.append(np.full(values[-1].size, number))
    if not values:
        return Best(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    value, block, index = np.concatenate(values), np.concatenate(where), np.concatenate(numbers)
    order = np.lexsort((index, block, -value))[:k]
    order = order[np.isfinite(value[order])]
    return Best(value[order], block[order], index[order].astype(np.int64))

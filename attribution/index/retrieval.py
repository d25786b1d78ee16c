"""Exact nearest-neighbour search: every stored vector is compared with the query, a block of chunks at a time.

A block's chunks are sharded over the devices; each device finds its own k best and only those are gathered. On TPUs the
k best are taken with `approx_max_k` at a recall of 0.99, elsewhere exactly.

There are two kinds of vectors: dense rows, and signatures of K concepts, whose inner product with a query is a sum of K
looked-up weights. That takes the same time for any distribution of concepts. Inverted lists (chunks by concept) would
not help, because the most common concepts are in most chunks.

Blocks are stored with the chunks on the last axis. On CPUs an entry of many chunks is then added in one vector
operation: a sixth of the time of a sum per chunk for signatures, half of it for rows (docs/results/training-data.md).

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
_MULTIPLE = 1024  # chunks per device are rounded up to a multiple of it, so that few programs are compiled
_UNROLL = 16  # entries added per loop iteration: the sums are read and written once for all of them


class Best(NamedTuple):
    """The best chunks: values (k,) float32, largest first; blocks, numbers (k,) int64, the block and the chunk in it.

    Shorter than k if there are fewer chunks.
    """

    values: np.ndarray
    blocks: np.ndarray
    numbers: np.ndarray


class VectorBlock(NamedTuple):
    """A sharded block: counts (S,) int32 of chunks without padding; arrays (S, D, M) of rows, or (S, K, M) of ids and
    of codes."""

    counts: jax.Array
    arrays: tuple[jax.Array, ...]


def shard_block(arrays: Sequence[np.ndarray], mesh: Mesh | None = None) -> VectorBlock:
    """Shards the arrays (N, D or K) of a block over the mesh's devices (default: all devices)."""
    mesh = mesh or Mesh(np.array(jax.devices()), ("data",))
    S, N = mesh.size, len(arrays[0])
    M = max(-(-N // (S * _MULTIPLE)) * _MULTIPLE, _MULTIPLE)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(array: np.ndarray) -> jax.Array:
        padded = np.zeros((S * M, array.shape[1]), array.dtype)
        padded[:N] = array
        return jax.device_put(np.ascontiguousarray(padded.reshape(S, M, -1).swapaxes(1, 2)), sharding)

    counts = np.clip(N - M * np.arange(S), 0, M).astype(np.int32)
    return VectorBlock(jax.device_put(counts, sharding), tuple(put(np.asarray(array)) for array in arrays))


def shard_rows(rows: np.ndarray, mesh: Mesh | None = None) -> VectorBlock:
    """Shards rows (N, D) in 16 bits: float16 on CPUs, which take twelve times as long to widen bfloat16 (measured),
    bfloat16 elsewhere."""
    return shard_block([np.asarray(rows, np.float16 if jax.default_backend() == "cpu" else jnp.bfloat16)], mesh)


def best_rows(blocks: Sequence[VectorBlock], query: np.ndarray, k: int) -> Best:
    """The k rows with the largest inner products with a query (D,)."""
    return _merge([_best_rows(block, jnp.asarray(query, jnp.float32), k=k) for block in blocks], blocks, k)


def best_signatures(blocks: Sequence[VectorBlock], weights: np.ndarray, k: int) -> Best:
    """The k signatures with the largest inner products with a signature given as dense weights (C + 1,).

    Blocks hold ids (N, K), unused ones C, and codes (N, K) uint8 (`signatures.quantise`).
    """
    return _merge([_best_signatures(block, jnp.asarray(weights, jnp.float32), k=k) for block in blocks], blocks, k)


@partial(jax.jit, static_argnames="k")
def _best_rows(block: VectorBlock, query: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    (rows,) = block.arrays
    if jax.default_backend() == "cpu":
        # Added entry by entry, 16-bit rows need no float32 copy of the whole block.
        scores = _sum_entries(rows, lambda d: query[d] * rows[:, d].astype(jnp.float32))
    else:
        scores = jnp.einsum("sdm,d->sm", rows, query.astype(rows.dtype), preferred_element_type=jnp.float32)
    return _top(scores, block.counts, k)


@partial(jax.jit, static_argnames="k")
def _best_signatures(block: VectorBlock, weights: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    ids, codes = block.arrays
    weights = weights / 255**2  # a code stands for (code / 255)²

    def product(entry: jax.Array) -> jax.Array:
        code = codes[:, entry].astype(jnp.float32)
        # Unused entries have the id C, for which the query's weight is 0.
        return weights.at[ids[:, entry]].get(mode="promise_in_bounds") * (code * code)

    return _top(_sum_entries(ids, product), block.counts, k)


def _sum_entries(array: jax.Array, term: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Sum (S, M) float32 of term(i) over the entries i of an array (S, entries, M)."""
    S, entries, M = array.shape
    return lax.fori_loop(0, entries, lambda i, total: total + term(i), jnp.zeros((S, M)), unroll=_UNROLL)


def _top(scores: jax.Array, counts: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Each device's k largest of scores (S, M) and their numbers, (S, k); padding is −∞."""
    scores = jnp.where(jnp.arange(scores.shape[1])[None, :] < counts[:, None], scores, -jnp.inf)
    k = min(k, scores.shape[1])
    if jax.default_backend() == "tpu":
        return jax.lax.approx_max_k(scores, k, recall_target=_RECALL)
    values, index = jax.lax.top_k(scores, k)
    return values, index


def _merge(results: Sequence[tuple[jax.Array, jax.Array]], blocks: Sequence[VectorBlock], k: int) -> Best:
    """The k best of all blocks and devices. Equal values are in the order of the chunks, so that the result does not
    depend on the number of devices."""
    values, block_numbers, numbers = [], [], []
    for block_number, ((value, index), block) in enumerate(zip(results, blocks, strict=True)):
        M = block.arrays[0].shape[2]
        values.append(np.asarray(value).ravel())
        numbers.append((np.asarray(index) + M * np.arange(len(index))[:, None]).ravel())
        block_numbers.append(np.full(values[-1].size, block_number))
    if not values:
        return Best(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    value, block, number = np.concatenate(values), np.concatenate(block_numbers), np.concatenate(numbers)
    order = np.lexsort((number, block, -value))[:k]
    order = order[np.isfinite(value[order])]
    return Best(value[order], block[order], number[order].astype(np.int64))

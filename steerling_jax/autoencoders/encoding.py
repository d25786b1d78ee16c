"""Encoding and decoding with a sparse autoencoder: in chunks of rows, and on a mesh each device with its own latents.

No array of all rows and all latents is made: a chunk's pre-activations are reduced to k values and indices before the
next chunk begins. On a mesh the latents are sharded over `tensor`; each device finds the best k of its own, and the
devices' candidates are merged, so k numbers a row move between devices instead of S.

Legend: N rows, D width, S latents, k latents kept of each row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.autoencoders.weights import Weights, normalise_rows
from steerling_jax.parallel.best_of_devices import best_of_devices
from steerling_jax.parallel.mesh import current_mesh, partition_spec
from steerling_jax.parallel.row_chunks import over_rows

_CHUNK = 256  # rows: their pre-activations stay in a CPU's cache between the product and the selection
_PRE_ACTIVATIONS = 1 << 23  # of a chunk at most, so that many latents mean few rows; XLA holds them twice
_FEWEST_ROWS = 16  # of a chunk: with fewer, reading the encoder from memory would decide the speed
_GROUP = 16  # latents of a group in `best`


def best(pre: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of pre (N, S) in each row, with their indices, largest first; equal to `lax.top_k`, also for ties.

    A group of 16 neighbours whose maximum is not among the k largest maxima holds none of the k largest values: there
    are already k others at least as large. So sorting S/16 maxima and then 16 k candidates is enough, which on a CPU
    is several times faster than sorting S values.
    """
    N, S = pre.shape
    if S % _GROUP or 4 * _GROUP * k > S:
        return lax.top_k(pre, k)
    groups = pre.reshape(N, S // _GROUP, _GROUP)
    # In ascending order, so that among equal values the lower index comes first, as `lax.top_k` has it.
    chosen = jnp.sort(lax.top_k(groups.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(N, k * _GROUP)
    values, at = lax.top_k(candidates, k)
    index = jnp.take_along_axis(chosen, at // _GROUP, axis=1) * _GROUP + at % _GROUP
    return values, index


@partial(jax.jit, static_argnames="k")
def encode_rows(weights: Weights, x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """x (N, D) float32 to the values (N, k) float32 and indices (N, k) int32 of the latents kept, largest first.

    k: for a threshold, at least the count of the busiest row (`count_active`). Values of latents not kept are 0.
    """
    if weights.settings.activation == "groupmax":
        return _over_chunks(lambda rows: _group_best(_kept(weights, rows), k), x, weights.b_enc.shape[0])

    def local(weights: Weights, x: jax.Array, first: jax.Array | int, axis: str | None) -> tuple[jax.Array, jax.Array]:
        S = weights.b_enc.shape[0]
        own = min(k, S)

        def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            values, index = best(_kept(weights, rows), own)
            index = index + first
            return (values, index) if axis is None else best_of_devices(values, index, k, axis)

        return _over_chunks(encode, x, S)

    return _on_own_latents(local, weights, x)


@jax.jit
def encode_dense_rows(weights: Weights, x: jax.Array) -> jax.Array:
    """x (N, D) float32 to latents (N, S) float32, 0 where not kept."""
    if weights.settings.activation == "threshold":
        return _kept(weights, x)
    assert weights.settings.k is not None
    values, indices = encode_rows(weights, x, weights.settings.k)
    return jnp.zeros((len(x), weights.b_enc.shape[0])).at[jnp.arange(len(x))[:, None], indices].add(values)


@jax.jit
def count_active(weights: Weights, x: jax.Array) -> jax.Array:
    """x (N, D) float32 to the number of latents (N,) int32 that a threshold keeps of each row."""

    def local(weights: Weights, x: jax.Array, first: jax.Array | int, axis: str | None) -> jax.Array:
        counts = _over_chunks(lambda rows: jnp.sum(_kept(weights, rows) > 0, axis=-1), x, weights.b_enc.shape[0])
        return lax.psum(counts, axis) if axis else counts

    return _on_own_latents(local, weights, x)


@jax.jit
def decode_rows(weights: Weights, values: jax.Array, indices: jax.Array) -> jax.Array:
    """values and indices (N, k) to hidden states (N, D) float32: a sum of k decoder rows and the bias."""
    scale = weights.latent_scale()
    if scale is not None:
        values = values / scale[indices]

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        # One row of the decoder a step: a gather of all k would hold (N, k, D) numbers and be slower.
        return total + values[:, i, None] * weights.W_dec[indices[:, i]].astype(jnp.float32)

    start = jnp.broadcast_to(weights.b_dec.astype(jnp.float32), (len(values), weights.b_dec.shape[0]))
    return lax.fori_loop(0, values.shape[1], add, start)


def _kept(weights: Weights, x: jax.Array) -> jax.Array:
    """x (N, D) to non-negative pre-activations (N, S), 0 where a threshold or ReLU leaves a latent out."""
    settings = weights.settings
    x = normalise_rows(x, settings.normalise)[0]
    if settings.subtract_b_dec:
        x = x - weights.b_dec[None].astype(jnp.float32)
    pre = jnp.dot(x, weights.W_enc.astype(jnp.float32), precision=lax.Precision.HIGHEST) + weights.b_enc[None]
    scale = weights.latent_scale()
    pre = pre if scale is None else pre * scale[None]
    if weights.threshold is not None:
        pre = jnp.where(pre > weights.threshold[None], pre, 0.0)
    return jax.nn.relu(pre)


def _group_best(kept: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The largest of each of k groups of neighbouring latents of kept (N, S), sorted by value."""
    groups = kept.reshape(len(kept), k, -1)
    at = groups.argmax(axis=-1)
    values, order = lax.top_k(jnp.take_along_axis(groups, at[:, :, None], axis=-1)[:, :, 0], k)
    return values, jnp.take_along_axis(at + jnp.arange(k)[None] * groups.shape[-1], order, axis=1)


def _over_chunks(work: Callable[[jax.Array], Any], x: jax.Array, latents: int) -> Any:
    """`work` on chunks of the rows x (N, D), one after another; results (N, …). latents: that `work` computes of each
    row at the same time."""
    return over_rows(work, x, min(_CHUNK, len(x), max(_FEWEST_ROWS, _PRE_ACTIVATIONS // latents)))


def _on_own_latents(local, weights: Weights, x: jax.Array):
    """`local(weights, x, first, axis)`, on a mesh with each device's own latents, the first of which is `first`."""
    mesh = current_mesh()
    if mesh is None:
        return local(weights, x, 0, None)
    (axis,) = partition_spec(("concepts",), weights.b_enc.shape, mesh)
    (batch,) = partition_spec(("batch",), x.shape[:1], mesh)
    assert axis is None or isinstance(axis, str)
    latents = PartitionSpec(axis)
    whole = {"W_enc": PartitionSpec(None, axis), "W_dec": latents, "b_enc": latents, "threshold": latents}
    specs = jax.tree_util.tree_map_with_path(
        lambda path, _: whole.get(jax.tree_util.keystr(path, simple=True), PartitionSpec()), weights
    )

    def own(weights: Weights, x: jax.Array):
        first = lax.axis_index(axis) * weights.b_enc.shape[0] if axis else 0
        return local(weights, x, first, axis)

    rows = PartitionSpec(batch)
    # The check would reject the chunks' loop, whose results are equal along `tensor` only after the merge.
    mapped = jax.shard_map(own, mesh=mesh, in_specs=(specs, rows), out_specs=rows, check_vma=False)
    return mapped(weights, x)

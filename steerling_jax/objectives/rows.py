"""Masked positions, gathered into rows: the losses and the concept heads see these alone.

Legend: B sequences, T positions, R rows of a sequence, M = B·R rows, D width, S chunks a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from steerling_jax.objectives.objective import Batch
from steerling_jax.parallel.mesh import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedRows:
    """Masked positions, as many rows R of each sequence, M = B·R: hidden (M, D); target (M,) int32; chunk (M,) int32 of
    the sequence's chunks, −1 for none; level (M,) the block's noise; valid (M,) float32, 0 for a filler; dropped ()
    int32, masked positions that did not fit; position (B, R) int32 in the sequence."""

    hidden: jax.Array
    target: jax.Array
    chunk: jax.Array
    level: jax.Array
    valid: jax.Array
    dropped: jax.Array
    position: jax.Array


def gather_rows(
    hidden: jax.Array, batch: Batch, levels: jax.Array, masked: jax.Array, block: int, share: float
) -> MaskedRows:
    """Picks the masked positions out of hidden (B, T, D), in order, into `share` of T rows of each sequence: so none
    leaves the device that has its sequence."""
    B, T, _ = hidden.shape
    chex.assert_shape((batch["tokens"], batch["chunk_index"], masked), (B, T))
    capacity = T if share >= 1 else int(T * share)
    position = jnp.argsort(~masked, axis=1, stable=True)[:, :capacity].astype(jnp.int32)
    count = jnp.sum(masked, axis=1, keepdims=True)
    valid = (jnp.arange(capacity)[None, :] < count).reshape(-1)
    return MaskedRows(
        hidden=at_rows(hidden, position),
        target=at_rows(batch["tokens"], position),
        chunk=jnp.where(valid, at_rows(batch["chunk_index"], position), -1),
        level=at_rows(levels, position // block),
        valid=valid.astype(jnp.float32),
        dropped=jnp.sum(jnp.maximum(count - capacity, 0)),
        position=position,
    )


def at_rows(values: jax.Array, position: jax.Array) -> jax.Array:
    """values (B, n, …) at `position` (B, R) of each sequence, (B·R, …)."""
    rest = values.shape[2:]
    found = jnp.take_along_axis(values, position.reshape(*position.shape, *(1 for _ in rest)), axis=1, mode="clip")
    return constrain(found.reshape(-1, *rest), ("batch", *(None for _ in rest)))


def masked_chunks(masked: jax.Array, chunk_index: jax.Array, chunks: int) -> jax.Array:
    """(B, S) bool, which of the S = `chunks` chunks have a masked position, for masked and chunk_index (B, T)."""
    return (chunk_of(chunk_index, chunks) & masked[:, None, :]).any(axis=2)


def chunk_of(index: jax.Array, chunks: int) -> jax.Array:
    """(B, S, n) bool, whether a position or row is of the chunk, for its number `index` (B, n), −1 for none."""
    return index[:, None, :] == jnp.arange(chunks, dtype=index.dtype)[None, :, None]

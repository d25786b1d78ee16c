"""Masked positions, gathered into rows: the losses and the concept heads are computed on these alone.

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
    """Masked positions as M = B·R rows, R for each sequence; unused rows are fillers.

    hidden (M, D); target (M,) int32, the true token; chunk (M,) int32, the number of the row's chunk within its
    sequence, −1 for none; level (M,) float32, the noise level of its block; valid (M,) float32, 0 for a filler, else 1;
    position (B, R) int32, where the row is in its sequence.
    """

    hidden: jax.Array
    target: jax.Array
    chunk: jax.Array
    level: jax.Array
    valid: jax.Array
    position: jax.Array


def gather_rows(
    hidden: jax.Array, batch: Batch, levels: jax.Array, masked: jax.Array, block: int, share: float
) -> MaskedRows:
    """Gathers the masked positions of hidden (B, T, D), in order, into `share` · T rows for each sequence.

    levels (B, n): noise of the diffusion blocks, of `block` positions each; masked (B, T) bool. Masked positions beyond
    the room are left out. Every sequence has the same number of rows, so that shapes are static and no row leaves the
    device that holds its sequence.
    """
    B, T, _ = hidden.shape
    chex.assert_shape((batch["tokens"], batch["chunk_index"], masked), (B, T))
    capacity = T if share >= 1 else int(T * share)
    # A stable sort of "not masked" puts the masked positions first and leaves their order as it is.
    position = jnp.argsort(~masked, axis=1, stable=True)[:, :capacity].astype(jnp.int32)
    count = jnp.sum(masked, axis=1, keepdims=True)
    valid = (jnp.arange(capacity)[None, :] < count).reshape(-1)
    return MaskedRows(
        hidden=at_rows(hidden, position),
        target=at_rows(batch["tokens"], position),
        chunk=jnp.where(valid, at_rows(batch["chunk_index"], position), -1),
        level=at_rows(levels, position // block),
        valid=valid.astype(jnp.float32),
        position=position,
    )


def at_rows(values: jax.Array, position: jax.Array) -> jax.Array:
    """The values (B, n, …) at `position` (B, R) of each sequence, as rows (B·R, …)."""
    rest = values.shape[2:]
    taken = jnp.take_along_axis(values, position.reshape(*position.shape, *(1 for _ in rest)), axis=1, mode="clip")
    return constrain(taken.reshape(-1, *rest), ("batch", *(None for _ in rest)))


def masked_chunks(masked: jax.Array, chunk_index: jax.Array, chunks: int) -> jax.Array:
    """Which of the S = `chunks` chunks have a masked position, (B, S) bool, for masked and chunk_index (B, T)."""
    return (chunk_of(chunk_index, chunks) & masked[:, None, :]).any(axis=2)


def chunk_of(index: jax.Array, chunks: int) -> jax.Array:
    """Which positions or rows belong to each of the S = `chunks` chunks, (B, S, n) bool, for their chunk numbers
    `index` (B, n), −1 for none."""
    return index[:, None, :] == jnp.arange(chunks, dtype=index.dtype)[None, :, None]

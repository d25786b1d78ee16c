"""Sums over chosen positions of a batch, computed a slice at a time.

Legend: B rows, T positions, R positions of a slice, K numbers a position.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

_ROWS = 128  # R, positions whose logits (R, V) are computed at once


def sum_by_row(chosen: jax.Array, values: Callable[[jax.Array], jax.Array], size: int) -> jax.Array:
    """Sums over the `chosen` positions (B, T) bool of each row, (B, K) float32.

    values: from positions of the flattened batch, (R,) int32, to their numbers (R, K); size: K. The logits of all
    positions would not fit into memory, so only chosen ones are computed, R at a time.
    """
    B, T = chosen.shape
    count = jnp.sum(chosen)
    index = jnp.nonzero(chosen.reshape(-1), size=-(-B * T // _ROWS) * _ROWS, fill_value=0)[0]

    def add(number: jax.Array, sums: jax.Array) -> jax.Array:
        at = jax.lax.dynamic_slice_in_dim(index, number * _ROWS, _ROWS)
        real = number * _ROWS + jnp.arange(_ROWS) < count
        return sums.at[at // T].add(jnp.where(real[:, None], values(at), 0.0))

    return jax.lax.fori_loop(0, (count + _ROWS - 1) // _ROWS, add, jnp.zeros((B, size)))

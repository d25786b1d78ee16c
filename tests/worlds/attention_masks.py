"""Attention masks that the package computes without building them, as plain arrays for comparison."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def two_copy_mask(length: int, block: int) -> jax.Array:
    """The mask (2T, 2T) bool of a clean and a noisy copy: clean positions see clean blocks up to their own; noisy
    positions see their own noisy block and the clean blocks before it."""
    number = jnp.arange(length) // block
    query, key = number[:, None], number[None, :]
    nothing = jnp.zeros((length, length), bool)
    return jnp.block([[query >= key, nothing], [query > key, query == key]])

"""Rotary position embeddings of the decoder families: half-split rotation of the leading part of each head.

Legend: B rows, T positions, r rotated entries of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.decoder.config import Rope

RopeTables = tuple[jax.Array, jax.Array]  # cosine and sine, each (B or 1, T, r / 2) float32


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Angles per position (r / 2,) float32, after the scaling for longer contexts.

    Source of 'llama3': `rope_scaling` of the published Llama 3.1 configurations.
    """
    rotated = round(head_dim * rope.share)
    # The published implementations round exponents and powers to float32, and the models were trained with that: exact
    # exponents would turn distant positions by other angles (ln θ · 2⁻²⁵ of the angle).
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    frequency = np.float32(1) / np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    if rope.kind == "llama3":
        # Wavelengths that fit `high_freq_factor` times into the original context stay, those that fit less than
        # `low_freq_factor` times are divided by the factor, and those between are interpolated.
        turns = frequency * rope.original_length / (2 * np.pi)
        smooth = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
        frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
    return frequency.astype(np.float32)


def rope_tables(rope: Rope, head_dim: int, positions: jax.Array) -> RopeTables:
    """Cosine and sine for absolute positions (B or 1, T)."""
    angle = positions.astype(jnp.float32)[:, :, None] * rope_frequencies(rope, head_dim)[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, tables: RopeTables) -> jax.Array:
    """x (B, T, heads, d) with its first r entries rotated, computed in float32, in x's dtype."""
    cos, sin = (table[:, :, None, :] for table in tables)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)

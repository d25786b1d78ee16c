"""Texts of many lengths in few programs: grouped by padded length, with padding masked out of attention.

Legend: B rows, T padded positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig

_BLOCK = 16  # positions; the unit of padded lengths in models without diffusion blocks


def padded_length(length: int, config: ModelConfig | DecoderConfig) -> int:
    """The shortest length of 1, 2, 3, 4, 6, 8, 12, 16, … blocks, or the whole context, that holds `length`. Blocks are
    diffusion blocks, or of 16 positions in an autoregressive model.

    Two sizes for each doubling of the context keep programs few and padding to a third of the length, or little more.
    """
    block = config.diff_block_size if isinstance(config, ModelConfig) else _BLOCK
    blocks = max(1, -(-length // block))
    power = 1 << (blocks - 1).bit_length()
    if power >= 4 and blocks <= power * 3 // 4:
        power = power * 3 // 4
    return min(power * block, config.context_length)


def by_length(lengths: Sequence[int], config: ModelConfig | DecoderConfig) -> dict[int, list[int]]:
    """Groups texts by padded length, shortest first: padded length to the indices of its texts."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[padded_length(length, config)].append(number)
    return dict(sorted(groups.items()))


def stack(texts: Sequence[np.ndarray], rows: int, padded: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `rows` texts as tokens (rows, padded) int32 and lengths (rows,) int32; unused rows have the length 1."""
    tokens, lengths = np.zeros((rows, padded), np.int32), np.ones(rows, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        lengths[row] = len(text)
    return tokens, lengths


def padding_mask(lengths: jax.Array, padded: int, block: int) -> jax.Array:
    """The mask (B, T, T) bool of block-causal attention without the positions past each row's length (B,)."""
    at = jnp.arange(padded)
    return block_causal_mask(at, at, block)[None] & (at[None, :] < lengths[:, None])[:, None, :]

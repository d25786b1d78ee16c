"""Passages: spans of text with their context, masked by a noise that is a function of their tokens alone.

Signatures, hidden rows and influence are all computed from passages. The noise is derived from a hash of the passage's
own tokens, not from a random stream. So a chunk is masked in the same way in whichever batch, process or run it is met:
an index that is built in parts equals one that is built at once, and a copy of a chunk in a generated text has the
vector of the chunk.

Legend: B passages, m draws, T padded positions, W positions of a window, R rows (masked positions that count),
n tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import require
from steerling_jax.models.batching import padded_length
from steerling_jax.models.steerling.config import ModelConfig

_MIN_PADDED = 64  # tokens; shorter shapes would need more compiled programs and save hardly any time


class Passage(NamedTuple):
    """The span [start, end) of tokens (n,) with the context [0, start). Tokens from `end` on are ignored."""

    tokens: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class Masking:
    """The noise of a passage: in each of `draws` maskings a share `level` of the positions is masked.

    Every position is masked level · draws times in all, rounded down or up. By default each position is masked exactly
    once, in one of two complementary draws. Raises `UserError` if some position might never be masked.
    """

    level: float = 0.5
    draws: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.level <= 1 and math.isfinite(self.level),
            f"level is {self.level}, but it must be above 0 and at most 1.",
        )
        require(
            self.level * self.draws >= 1 - 1e-9,
            f"{self.draws} draws at level {self.level} leave tokens unmasked: their product must be at least 1.",
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PassageBatch:
    """Passages as arrays of one shape.

    Attributes:
        clean: (B, T) int32, padded with the mask id.
        noisy: (B, m, W) int32, masked copies of the window: the diffusion blocks that contain the span.
        first: (B,) int32, the window's first position.
        rows: (B, R) int32, the span's masked positions as draw · W + position in the window.
        weight: (B, R) float32, 1 / (number of draws in which that position is masked); 0 for padding.
    """

    clean: jax.Array
    noisy: jax.Array
    first: jax.Array
    rows: jax.Array
    weight: jax.Array


def draw_masks(tokens: np.ndarray, masking: Masking) -> np.ndarray:
    """Which of tokens (n,) are masked in each draw, (m, n) bool; a function of the tokens and the masking alone."""
    content = np.asarray(tokens, np.int32).tobytes() + masking.seed.to_bytes(8, "little", signed=True)
    raw = np.frombuffer(hashlib.shake_128(content).digest(4 * len(tokens)), np.uint32)
    # Stratified: one uniform number per position, shifted by k / draws (mod 1) in draw k. The shifted values are
    # equally spaced on the circle, so a share `level` of them is below `level`, up to rounding. Independent draws would
    # leave some positions unmasked, and their tokens would not count.
    shifted = raw / 2.0**32 + np.arange(masking.draws)[:, None] / masking.draws
    return shifted % 1.0 < masking.level


def max_passage_length(config: ModelConfig) -> int:
    """The largest number of tokens of a passage: the model's context in whole diffusion blocks."""
    return config.block_size // config.diff_block_size * config.diff_block_size


def truncate_passage(passage: Passage, limit: int) -> Passage:
    """The passage with at most `limit` tokens. Context is removed first, from the left, then the end of the span."""
    tokens, start, end = passage
    first = max(0, min(start, end - limit))
    end = min(end, first + limit)
    return Passage(np.asarray(tokens[first:end], np.int32), start - first, end - first)


def stack_passages(
    passages: Sequence[Passage], batch_size: int, padded: int, window: int, masking: Masking, config: ModelConfig
) -> PassageBatch:
    """Stacks at most `batch_size` truncated passages whose spans' blocks fit in `window` positions; spare rows of the
    batch have weight 0."""
    mask_id, shape = config.mask_token_id, (batch_size, masking.draws, window)
    clean, first = np.full((batch_size, padded), mask_id, np.int32), np.zeros(batch_size, np.int32)
    masked, in_span = np.ones(shape, bool), np.zeros((batch_size, 1, window), bool)
    for row, (tokens, start, end) in enumerate(passages):
        clean[row, :end] = tokens[:end]
        offset = first[row] = min(start // config.diff_block_size * config.diff_block_size, padded - window)
        # The first block may begin with context, which the span attends to. Context and span are masked separately, so
        # that the span's masks do not depend on what precedes it.
        draws = [draw_masks(tokens[a:b], masking) for a, b in ((0, start), (start, end))]
        masked[row, :, : end - offset] = np.concatenate(draws, axis=1)[:, offset:]
        in_span[row, :, start - offset : end - offset] = True
    times_masked = masked.sum(axis=1, keepdims=True)
    most = math.ceil(masking.level * masking.draws - 1e-9)  # upper bound of `times_masked`
    shape = (batch_size, most * window)
    rows, weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row, counted in enumerate(masked & in_span):
        places = np.flatnonzero(counted)
        rows[row, : len(places)] = places
        # A token that is masked twice gets half the weight each time: every token counts once in a loss or a mean.
        weight[row, : len(places)] = 1 / times_masked[row, 0, places % window]
    visible = np.take_along_axis(clean, first[:, None] + np.arange(window)[None, :], axis=1)
    noisy = np.where(masked, np.int32(mask_id), visible[:, None, :])
    return PassageBatch(*(jnp.asarray(array) for array in (clean, noisy, first, rows, weight)))


def passage_batches(
    passages: Sequence[Passage], config: ModelConfig, masking: Masking, batch_size: int
) -> Iterator[tuple[list[int], PassageBatch]]:
    """Yields (numbers of the passages, their batch), grouped by padded length and window, shortest first.

    The last batch of a group is padded to `batch_size`, so that one program per shape is compiled; a single passage is
    a batch of one. Raises `UserError` for an empty span.
    """
    limit, groups = max_passage_length(config), dict[tuple[int, int], list[tuple[int, Passage]]]()
    batch_size = batch_size if len(passages) > 1 else 1
    for number, passage in enumerate(passages):
        tokens, start, end = passage
        require(0 <= start < end <= len(tokens), f"{start} to {end} is not a span of a text of {len(tokens)} tokens.")
        short = truncate_passage(passage, limit)
        before = short.start // config.diff_block_size * config.diff_block_size
        padded, window = (
            min(padded_length(max(size, _MIN_PADDED), config), limit) for size in (short.end, short.end - before)
        )
        groups.setdefault((padded, window), []).append((number, short))
    for (padded, window), members in sorted(groups.items()):
        for first in range(0, len(members), batch_size):
            batch = members[first : first + batch_size]
            yield (
                [number for number, _ in batch],
                stack_passages([short for _, short in batch], batch_size, padded, window, masking, config),
            )

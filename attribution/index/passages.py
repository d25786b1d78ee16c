"""Spans of text under a fixed noise: what every score of the training-data index is computed from.

A passage is a span and what stands before it. Its noise depends on its own tokens alone, so that a chunk of the corpus
is masked alike whenever it is met, in whichever batch, and so is a copy of it in a generated text.

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

_SHORTEST = 64  # tokens that a passage is padded to at least: fewer programs for hardly more work


class Passage(NamedTuple):
    """The span [start, end) of tokens (n,), read after tokens [0, start); tokens from `end` on are cut away."""

    tokens: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class Masking:
    """The noise: in each of `draws` a share `level` of the positions is masked.

    The draws are turns of one draw, so that every position is masked level · draws times, rounded down or up. By
    default each is masked exactly once, in one of two complementary draws. Raises `UserError` where some position might
    never be.
    """

    level: float = 0.5
    draws: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.level <= 1 and math.isfinite(self.level), f"level is {self.level}: give a share above 0, up to 1."
        )
        require(
            self.level * self.draws >= 1 - 1e-9,
            f"{self.draws} draws at level {self.level} leave tokens unmasked: their product must be at least 1.",
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PassageBatch:
    """clean (B, T) int32, filled up with the mask id; noisy (B, m, W) int32: the diffusion blocks that hold the span,
    from position first (B,) int32 on; rows (B, R) int32, the span's masked positions as draw · W + place in the window;
    weight (B, R) float32: 1 over how often its position is masked, 0 for a filler."""

    clean: jax.Array
    noisy: jax.Array
    first: jax.Array
    rows: jax.Array
    weight: jax.Array


def draw_masks(tokens: np.ndarray, masking: Masking) -> np.ndarray:
    """Which of tokens (n,) are masked in each draw, (m, n) bool: a function of the tokens and the masking alone."""
    content = np.asarray(tokens, np.int32).tobytes() + masking.seed.to_bytes(8, "little", signed=True)
    raw = np.frombuffer(hashlib.shake_128(content).digest(4 * len(tokens)), np.uint32)
    turned = raw / 2.0**32 + np.arange(masking.draws)[:, None] / masking.draws
    return turned % 1.0 < masking.level


def longest_passage(config: ModelConfig) -> int:
    """The most tokens that a passage may have: the model's context in whole diffusion blocks."""
    return config.block_size // config.diff_block_size * config.diff_block_size


def fitted(passage: Passage, most: int) -> Passage:
    """The passage in at most `most` tokens: context is left out first, from the left, and then the end of the span."""
    tokens, start, end = passage
    first = max(0, min(start, end - most))
    end = min(end, first + most)
    return Passage(np.asarray(tokens[first:end], np.int32), start - first, end - first)


def stack_passages(
    passages: Sequence[Passage], rows: int, padded: int, window: int, masking: Masking, config: ModelConfig
) -> PassageBatch:
    """At most `rows` fitted passages, whose spans' blocks fit in `window` positions; rows to spare have weight 0.

    A block's other tokens can be seen from the span, so context and span are both noisy, each by its own content.
    """
    mask_id, shape = config.mask_token_id, (rows, masking.draws, window)
    clean, first = np.full((rows, padded), mask_id, np.int32), np.zeros(rows, np.int32)
    masked, inside = np.ones(shape, bool), np.zeros((rows, 1, window), bool)
    for row, (tokens, start, end) in enumerate(passages):
        clean[row, :end] = tokens[:end]
        at = first[row] = min(start // config.diff_block_size * config.diff_block_size, padded - window)
        draws = [draw_masks(tokens[a:b], masking) for a, b in ((0, start), (start, end))]
        masked[row, :, : end - at] = np.concatenate(draws, axis=1)[:, at:]
        inside[row, :, start - at : end - at] = True
    times = masked.sum(axis=1, keepdims=True)
    most = math.ceil(masking.level * masking.draws - 1e-9)  # a position is masked at most so often
    index, weight = np.zeros((rows, most * window), np.int32), np.zeros((rows, most * window), np.float32)
    for row, counted in enumerate(masked & inside):
        found = np.flatnonzero(counted)
        index[row, : len(found)] = found
        weight[row, : len(found)] = 1 / times[row, 0, found % window]
    shown = np.take_along_axis(clean, first[:, None] + np.arange(window)[None, :], axis=1)
    noisy = np.where(masked, np.int32(mask_id), shown[:, None, :])
    return PassageBatch(*(jnp.asarray(array) for array in (clean, noisy, first, index, weight)))


def passage_batches(
    passages: Sequence[Passage], config: ModelConfig, masking: Masking, batch_size: int
) -> Iterator[tuple[list[int], PassageBatch]]:
    """(numbers of the passages, their batch), grouped by padded length and window, shortest first. Batches are filled
    up, so that there is one program for each size; a single passage stands alone. Raises `UserError` for an empty
    span."""
    most, groups = longest_passage(config), dict[tuple[int, int], list[tuple[int, Passage]]]()
    batch_size = batch_size if len(passages) > 1 else 1
    for number, passage in enumerate(passages):
        tokens, start, end = passage
        require(0 <= start < end <= len(tokens), f"The span {start} to {end} of {len(tokens)} tokens is no span.")
        fit = fitted(passage, most)
        before = fit.start // config.diff_block_size * config.diff_block_size
        padded, window = (
            min(padded_length(max(size, _SHORTEST), config), most) for size in (fit.end, fit.end - before)
        )
        groups.setdefault((padded, window), []).append((number, fit))
    for (padded, window), members in sorted(groups.items()):
        for first in range(0, len(members), batch_size):
            some = members[first : first + batch_size]
            yield (
                [number for number, _ in some],
                stack_passages([fit for _, fit in some], batch_size, padded, window, masking, config),
            )

"""The held-out split as arrays for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HeldOut:
    """N sequences of T tokens. tokens (N, T) int32 · valid (N, T) bool, false where the last sequence is filled up ·
    chunk_index (N, T) int32, counted from the sequence's first chunk, −1 for none · first_chunk (N,) int64, its number
    in the store · chunks: the most of any sequence · byte_count: UTF-8 length of the text, None if the ids have no
    text."""

    tokens: np.ndarray
    valid: np.ndarray
    chunk_index: np.ndarray
    first_chunk: np.ndarray
    chunks: int
    byte_count: int | None

    @property
    def token_count(self) -> int:
        return int(self.valid.sum())

    @property
    def chunk_numbers(self) -> np.ndarray:
        """Which chunks of the store have a token here, ascending, int64."""
        return np.unique((self.first_chunk[:, None] + self.chunk_index)[self.chunk_index >= 0])

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(tokens, valid, chunk_index, first_chunk) of `size` sequences at a time, the last batch filled up."""
        count = len(self.tokens)
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            real = (rows < count)[:, None]
            rows = np.minimum(rows, count - 1)
            chunk_index = np.where(real, self.chunk_index[rows], -1)
            yield self.tokens[rows], self.valid[rows] & real, chunk_index, self.first_chunk[rows]

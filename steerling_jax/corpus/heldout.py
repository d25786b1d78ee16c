"""A split of the corpus as arrays for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HeldOut:
    """N sequences of T tokens.

    Attributes:
        tokens: (N, T) int32.
        valid: (N, T) bool, false where the last sequence is padded.
        chunk_index: (N, T) int32, each token's chunk, counted from the sequence's first chunk; −1 for none.
        first_chunk: (N,) int64, the number of each sequence's first chunk in the store.
        chunks: the largest number of chunks of a sequence.
        byte_count: UTF-8 length of the text; None if the tokenizer has no vocabulary.
    """

    tokens: np.ndarray
    valid: np.ndarray
    chunk_index: np.ndarray
    first_chunk: np.ndarray
    chunks: int
    byte_count: int | None

    @property
    def token_count(self) -> int:
        """Number of tokens, without padding."""
        return int(self.valid.sum())

    @property
    def chunk_numbers(self) -> np.ndarray:
        """Numbers of the chunks with a token in these sequences, ascending, int64."""
        return np.unique((self.first_chunk[:, None] + self.chunk_index)[self.chunk_index >= 0])

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (tokens, valid, chunk_index, first_chunk) of `size` sequences at a time; the last batch is padded with
        sequences that have no valid token, so that all batches have one shape."""
        count = len(self.tokens)
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            exists = (rows < count)[:, None]
            rows = np.minimum(rows, count - 1)
            chunk_index = np.where(exists, self.chunk_index[rows], -1)
            yield self.tokens[rows], self.valid[rows] & exists, chunk_index, self.first_chunk[rows]

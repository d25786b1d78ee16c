"""The tokens of several chunks as one padded array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bags:
    """The tokens of m chunks: (m, L) int32, padded with −1."""

    tokens: np.ndarray

    @classmethod
    def grouped(cls, tokens: np.ndarray, chunk: np.ndarray, count: int) -> Bags:
        """Groups tokens (N,) by the chunk of each, `chunk` (N,) in 0 … count − 1."""
        order = np.argsort(chunk, kind="stable")
        tokens, chunk = tokens[order], chunk[order]
        sizes = np.bincount(chunk, minlength=count)
        table = np.full((count, max(int(sizes.max(initial=0)), 1)), -1, np.int32)
        table[chunk, np.arange(len(chunk)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = tokens
        return cls(table)

    def take(self, rows: np.ndarray) -> Bags:
        """The chunks at `rows`."""
        return Bags(self.tokens[rows])

    def __len__(self) -> int:
        return len(self.tokens)

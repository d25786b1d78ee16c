"""The tokens of chunks as one padded table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bags:
    """Tokens of m chunks, (m, L) int32, −1 where there are fewer."""

    tokens: np.ndarray

    @classmethod
    def grouped(cls, tokens: np.ndarray, chunk: np.ndarray, count: int) -> Bags:
        """From tokens (N,) and the chunk of each, chunk (N,) in 0 … count − 1."""
        order = np.argsort(chunk, kind="stable")
        tokens, chunk = tokens[order], chunk[order]
        sizes = np.bincount(chunk, minlength=count)
        table = np.full((count, max(int(sizes.max(initial=0)), 1)), -1, np.int32)
        table[chunk, np.arange(len(chunk)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = tokens
        return cls(table)

    def take(self, rows: np.ndarray) -> Bags:
        return Bags(self.tokens[rows])

    def __len__(self) -> int:
        return len(self.tokens)

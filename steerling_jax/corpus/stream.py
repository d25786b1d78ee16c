"""Streams a corpus's tokens in order, in batches, for passes over corpora larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from steerling_jax.corpus.reader import Corpus


class TokenBatch(NamedTuple):
    """A batch of consecutive tokens.

    tokens: (B, T) int32, padded at the end of the last batch. chunk: (B, T) int64, each token's chunk number, −1 for
    none.
    """

    tokens: np.ndarray
    chunk: np.ndarray


def stream_tokens(store: Corpus, start: int, end: int, seq_len: int, size: int) -> Iterator[TokenBatch]:
    """Yields each token of [start, end) once, in batches of `size` sequences of `seq_len`; the last batch is padded."""
    for first in range(start, end, seq_len * size):
        last = min(first + seq_len * size, end)
        tokens = np.full(seq_len * size, max(store.special.pad_id, 0), np.int32)
        chunk = np.full(seq_len * size, -1, np.int64)
        tokens[: last - first] = store.tokens(first, last)
        low, high = store.chunks_between(first, last)
        if high > low:
            spans = store.read("chunk_spans", low, high)
            at = np.arange(first, last)
            number = np.searchsorted(spans[:, 0], at, side="right") - 1
            inside = (number >= 0) & (at < spans[np.maximum(number, 0), 1])
            chunk[: last - first] = np.where(inside, low + number, -1)
        yield TokenBatch(tokens.reshape(size, seq_len), chunk.reshape(size, seq_len))

"""The corpus's tokens in order, some sequences at a time: for passes over corpora that fit no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from steerling_jax.corpus.reader import Corpus


class TokenBatch(NamedTuple):
    """tokens (B, T) int32, padding at the end of the last batch; chunk (B, T) int64: each token's chunk number in the
    store, −1 for none."""

    tokens: np.ndarray
    chunk: np.ndarray


def stream_tokens(store: Corpus, start: int, end: int, seq_len: int, size: int) -> Iterator[TokenBatch]:
    """Every token of [start, end) once, in sequences of `seq_len`, `size` at a time; the last batch is filled up."""
    for first in range(start, end, seq_len * size):
        last = min(first + seq_len * size, end)
        tokens = np.full(seq_len * size, store.special.pad_id, np.int32)
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

"""Reads chunks and their labels as arrays, for probes and lifts."""

from __future__ import annotations

import numpy as np

from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.reader import Corpus

_GAP = 64  # chunks that are not requested but read along, where they lie between requested ones


def chunk_bags(store: Corpus, first: int, last: int) -> Bags:
    """The tokens of chunks `first` to `last`."""
    spans = store.read("chunk_spans", first, last)
    base = int(spans[0, 0])
    tokens = store.tokens(base, int(spans[-1, 1]))
    sizes = spans[:, 1] - spans[:, 0]
    chunk = np.repeat(np.arange(len(spans)), sizes)
    inside = np.arange(len(chunk)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Bags.grouped(tokens[spans[chunk, 0] - base + inside].astype(np.int32), chunk, len(spans))


def chunk_positives(store: Corpus, first: int, last: int, concepts: int) -> np.ndarray:
    """Whether each concept labels each of chunks `first` to `last`: (last − first, concepts) bool."""
    labels = store.read("chunk_labels", first, last)
    table = np.zeros((last - first, concepts), bool)
    row, column = np.nonzero((labels >= 0) & (labels < concepts))
    table[row, labels[row, column]] = True
    return table


def bags_of(store: Corpus, numbers: np.ndarray) -> Bags:
    """The tokens of the chunks `numbers` (m,), ascending."""
    parts = [chunk_bags(store, int(group[0]), int(group[-1]) + 1).take(group - group[0]) for group in _groups(numbers)]
    longest = max((part.tokens.shape[1] for part in parts), default=1)
    rows = [np.pad(p.tokens, ((0, 0), (0, longest - p.tokens.shape[1])), constant_values=-1) for p in parts]
    return Bags(np.concatenate([np.zeros((0, longest), np.int32), *rows]))


def positives_of(store: Corpus, numbers: np.ndarray, concepts: int) -> np.ndarray:
    """Whether each concept labels each of the chunks `numbers` (m,), ascending: (m, concepts) bool."""
    parts = [
        chunk_positives(store, int(group[0]), int(group[-1]) + 1, concepts)[group - group[0]]
        for group in _groups(numbers)
    ]
    return np.concatenate([np.zeros((0, concepts), bool), *parts])


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """Splits ascending chunk numbers into groups that one read each can serve.

    Samples of a large split lie far apart: reading from the first to the last would read the whole split.
    """
    return [group for group in np.split(numbers, np.flatnonzero(np.diff(numbers) > _GAP) + 1) if len(group)]

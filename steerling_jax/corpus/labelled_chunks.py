"""A corpus store's chunks with their labels as tables: what probes and lifts are counted from."""

from __future__ import annotations

import numpy as np

from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.reader import Corpus

_GAP = 64  # chunks between two that are wanted, to be read along with them


def chunk_bags(store: Corpus, first: int, last: int) -> Bags:
    """The tokens of chunks `first` to `last`, in their order."""
    spans = store.read("chunk_spans", first, last)
    base = int(spans[0, 0])
    tokens = store.tokens(base, int(spans[-1, 1]))
    sizes = spans[:, 1] - spans[:, 0]
    chunk = np.repeat(np.arange(len(spans)), sizes)
    inside = np.arange(len(chunk)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Bags.grouped(tokens[spans[chunk, 0] - base + inside].astype(np.int32), chunk, len(spans))


def chunk_positives(store: Corpus, first: int, last: int, concepts: int) -> np.ndarray:
    """Labels of chunks `first` to `last`, (last − first, concepts) bool."""
    labels = store.read("chunk_labels", first, last)
    table = np.zeros((last - first, concepts), bool)
    row, place = np.nonzero((labels >= 0) & (labels < concepts))
    table[row, labels[row, place]] = True
    return table


def bags_of(store: Corpus, numbers: np.ndarray) -> Bags:
    """The tokens of the chunks `numbers` (m,), ascending."""
    parts = [chunk_bags(store, int(near[0]), int(near[-1]) + 1).take(near - near[0]) for near in _groups(numbers)]
    longest = max((part.tokens.shape[1] for part in parts), default=1)
    rows = [np.pad(p.tokens, ((0, 0), (0, longest - p.tokens.shape[1])), constant_values=-1) for p in parts]
    return Bags(np.concatenate([np.zeros((0, longest), np.int32), *rows]))


def positives_of(store: Corpus, numbers: np.ndarray, concepts: int) -> np.ndarray:
    """Labels of the chunks `numbers` (m,), ascending: (m, concepts) bool."""
    parts = [
        chunk_positives(store, int(near[0]), int(near[-1]) + 1, concepts)[near - near[0]] for near in _groups(numbers)
    ]
    return np.concatenate([np.zeros((0, concepts), bool), *parts])


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """Those that lie near each other, to be read at once: samples of a large split lie far apart."""
    return [near for near in np.split(numbers, np.flatnonzero(np.diff(numbers) > _GAP) + 1) if len(near)]

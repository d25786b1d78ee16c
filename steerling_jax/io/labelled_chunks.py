"""A corpus store's chunks with their labels as tables: what probes and lifts are counted from."""

from __future__ import annotations

import numpy as np

from steerling_jax.io.corpus import CorpusStore
from steerling_jax.probe import Bags


def chunk_bags(store: CorpusStore, first: int, last: int) -> Bags:
    """The tokens of chunks `first` to `last`, in their order."""
    spans = store.read("chunk_spans", first, last)
    base = int(spans[0, 0])
    tokens = store.tokens(base, int(spans[-1, 1]))
    sizes = spans[:, 1] - spans[:, 0]
    chunk = np.repeat(np.arange(len(spans)), sizes)
    inside = np.arange(len(chunk)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Bags.grouped(tokens[spans[chunk, 0] - base + inside].astype(np.int32), chunk, len(spans))


def chunk_positives(store: CorpusStore, first: int, last: int, concepts: int) -> np.ndarray:
    """Labels of chunks `first` to `last`, (last − first, concepts) bool."""
    labels = store.read("chunk_labels", first, last)
    table = np.zeros((last - first, concepts), bool)
    row, place = np.nonzero((labels >= 0) & (labels < concepts))
    table[row, labels[row, place]] = True
    return table

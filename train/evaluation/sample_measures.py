"""What can be counted in samples: known words, copied runs of tokens, repetition.

The same figures of the documents' own continuations are the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.evaluation.text_metrics import distinct
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.train.evaluation.samples import Sample

RUN = 8  # tokens in a row that count as copied
_WORD = re.compile(r"[^\W\d_]{2,}")
_SLICE = 1 << 20  # tokens of the training split that are read at once


def measures(written: Sequence[Sample], bundle: Bundle, store: CorpusStore) -> dict[str, dict[str, float | None]]:
    """Figures of the `samples` and of their `reference` continuations, 0 to 1; None where there is nothing to count.

    known_words: the share of words (two letters or more) that occur in the training split.
    copied: the share of runs of 8 tokens that occur there.
    distinct_1, distinct_2, distinct_4: distinct n-grams over all n-grams of a sample; the mean over samples.
    """
    special = np.array(sorted(store.special.names()))
    texts_of = {"samples": [s.tokens for s in written], "reference": [s.reference for s in written]}
    texts_of = {name: [[i for i in ids if i not in special] for ids in texts] for name, texts in texts_of.items()}
    words, runs = _training_words_and_runs(
        bundle, store, np.unique(np.concatenate([_runs(np.array(ids)) for texts in texts_of.values() for ids in texts]))
    )
    figures: dict[str, dict[str, float | None]] = {}
    for name, texts in texts_of.items():
        text_words = [w.lower() for ids in texts for w in _WORD.findall(bundle.tokenizer.decode(ids))]
        text_runs = np.concatenate([_runs(np.array(ids)) for ids in texts])
        figures[name] = {
            "known_words": _mean([word in words for word in text_words]),
            "copied": _mean(np.isin(text_runs, runs).tolist()),
            **{f"distinct_{n}": _mean([d for ids in texts if (d := distinct(ids, n)) is not None]) for n in (1, 2, 4)},
        }
    return figures


def _training_words_and_runs(bundle: Bundle, store: CorpusStore, candidates: np.ndarray) -> tuple[set[str], np.ndarray]:
    """(all words of the training split, those of the `candidates` runs that occur in it).

    The split may be larger than memory, so it is read in slices. A slice overlaps the next one by a run less one token,
    so that no run is missed at the seam.
    """
    start, end = store.split("train")
    words: set[str] = set()
    seen = np.zeros(0, np.uint64)
    for first in range(start, end, _SLICE):
        ids = store.tokens(first, min(first + _SLICE + RUN - 1, end))
        words.update(word.lower() for word in _WORD.findall(bundle.tokenizer.decode(ids)))
        seen = np.union1d(seen, candidates[np.isin(candidates, _runs(ids))])
    return words, seen


def _runs(tokens: np.ndarray) -> np.ndarray:
    """Hashes (N − 7,) uint64 of the runs of 8 tokens, by multiplication and shift; they do not collide in practice."""
    count = max(len(tokens) - RUN + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for offset in range(RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + count].astype(np.uint64)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None

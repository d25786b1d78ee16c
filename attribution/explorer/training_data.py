"""The training data behind texts: an opened index with its corpus store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from steerling_jax.attribution.index.evidence import SCORES, Evidence, Score
from steerling_jax.attribution.index.reader import open_index
from steerling_jax.attribution.index.search import find_evidence
from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore

# Training data for tokens [start, end) of ids (T,), by these scores.
EvidenceSearch = Callable[[Any, int, int, tuple[Score, ...]], Evidence]


class TrainingData(NamedTuple):
    """search: finds training data by some of the `scores`, those that the index has. corpus: its texts."""

    search: EvidenceSearch
    corpus: CorpusStore | None
    scores: tuple[Score, ...] = SCORES

    @property
    def quick_scores(self) -> tuple[Score, ...]:
        """The scores that take a fraction of a second: all but influence."""
        return tuple(score for score in self.scores if score != "influence")


def open_training_data(index: str | Path, corpus: str | Path, bundle: Bundle) -> TrainingData:
    """An index with its corpus store. Raises `UserError` where one is not of this model, or not of the other."""
    store = CorpusStore(corpus)
    opened = open_index(index, store, bundle)
    search = lambda tokens, start, end, scores: find_evidence(bundle, opened, tokens[:end], start, end, scores)  # noqa: E731
    return TrainingData(search, store, tuple(score for score in SCORES if score in opened.thresholds))

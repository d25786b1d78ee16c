"""Prompts to steer on, from held-out documents: those that say nothing of a concept, and those that are about it.

Legend: m held-out chunks, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.corpus.labelled_chunks import chunk_positives
from steerling_jax.io.corpus.store import CorpusStore

WITHOUT_TOKENS = 16  # of a prompt that lacks the concept: a document's first
WITH_TOKENS = 32  # of a prompt that has it: up to the middle of a chunk


@dataclass(frozen=True)
class Opening:
    """A prompt. ids: its tokens. goes_on: those that follow in the document. own: concepts of the chunks that these two
    reach into."""

    document: str
    ids: tuple[int, ...]
    goes_on: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True)
class HeldOutChunks:
    """The held-out chunks: span (m, 2) in the store's tokens, document (m,) and positive (m, C) bool."""

    store: CorpusStore
    span: np.ndarray
    document: np.ndarray
    positive: np.ndarray

    @classmethod
    def read(cls, store: CorpusStore, concepts: int) -> HeldOutChunks:
        first, last = store.chunks_between(*store.split("heldout"))
        span, document = (store.read(name, first, last) for name in ("chunk_spans", "chunk_documents"))
        return cls(store, span, document, chunk_positives(store, first, last, concepts))

    def without(self, concept: int, new_tokens: int, seed: Sequence[int]) -> Iterator[Opening]:
        """The first tokens of the documents that have the concept nowhere, in an order drawn by `seed`; those too short
        for prompt and continuation are passed over."""
        having = set(self.document[self.positive[:, concept]].tolist())
        for number in _shuffled(np.unique(self.document), seed):
            record = self.store.documents[number]
            if number not in having and record.end - record.start >= WITHOUT_TOKENS + new_tokens:
                yield self._opening(number, record.start, record.start + WITHOUT_TOKENS, new_tokens)

    def having(self, concept: int, new_tokens: int, seed: Sequence[int]) -> Iterator[Opening]:
        """The tokens up to the middle of the chunks with the concept, in an order drawn by `seed`: one of each
        document, then a second of each that has more, and so on."""
        rows = _shuffled(np.flatnonzero(self.positive[:, concept]), seed)
        turn = [sum(self.document[earlier] == self.document[row] for earlier in rows[:i]) for i, row in enumerate(rows)]
        for i in np.argsort(turn, kind="stable"):
            number, middle = int(self.document[rows[i]]), int(self.span[rows[i]].sum()) // 2
            start = max(self.store.documents[number].start, middle - WITH_TOKENS)
            yield self._opening(number, start, middle, new_tokens)

    def _opening(self, document: int, start: int, middle: int, new_tokens: int) -> Opening:
        record = self.store.documents[document]
        end = min(middle + new_tokens, record.end)
        reached = (self.span[:, 0] < end) & (self.span[:, 1] > start)
        ids = self.store.tokens(start, end).astype(int).tolist()
        own = np.flatnonzero(self.positive[reached].any(axis=0)).tolist()
        return Opening(record.name, tuple(ids[: middle - start]), tuple(ids[middle - start :]), tuple(own))


def _shuffled(items: np.ndarray, seed: Sequence[int]) -> list[int]:
    return np.random.default_rng(list(seed)).permutation(items).tolist()

"""Prompts of the steering evaluation, from held-out documents with and without a concept.

Legend: m held-out chunks, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.corpus.labelled_chunks import chunk_positives
from steerling_jax.io.corpus.store import CorpusStore

WITHOUT_TOKENS = 16  # length of a prompt without the concept: a document's first tokens
WITH_TOKENS = 32  # largest length of a prompt with the concept, which ends in the middle of a chunk


@dataclass(frozen=True)
class Opening:
    """A prompt. ids: its tokens. continuation: those that follow in the document. own: concepts of the chunks that the
    two overlap."""

    document: str
    ids: tuple[int, ...]
    continuation: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True)
class HeldOutChunks:
    """The held-out chunks. span (m, 2): start and end in the store's tokens. document (m,): numbers. positive (m, C)
    bool: concept labels."""

    store: CorpusStore
    span: np.ndarray
    document: np.ndarray
    positive: np.ndarray

    @classmethod
    def read(cls, store: CorpusStore, concepts: int) -> HeldOutChunks:
        """The held-out chunks of a store, with the labels of concepts 0 … concepts − 1."""
        first, last = store.chunks_between(*store.split("heldout"))
        span, document = (store.read(name, first, last) for name in ("chunk_spans", "chunk_documents"))
        return cls(store, span, document, chunk_positives(store, first, last, concepts))

    def without(self, concept: int, new_tokens: int, seed: Sequence[int]) -> Iterator[Opening]:
        """The first tokens of the documents without the concept, in an order drawn by `seed`; documents too short for
        prompt and continuation are skipped."""
        having = set(self.document[self.positive[:, concept]].tolist())
        for number in _shuffled(np.unique(self.document), seed):
            record = self.store.documents[number]
            if number not in having and record.end - record.start >= WITHOUT_TOKENS + new_tokens:
                yield self._opening(number, record.start, record.start + WITHOUT_TOKENS, new_tokens)

    def having(self, concept: int, new_tokens: int, seed: Sequence[int]) -> Iterator[Opening]:
        """The tokens up to the middle of the chunks with the concept, in an order drawn by `seed`: the first chunk of
        each document, then the second of each that has more, and so on."""
        rows = _shuffled(np.flatnonzero(self.positive[:, concept]), seed)
        # How many of the document's chunks come before each one. Sorted by it, the samples are spread over documents.
        rank = [sum(self.document[earlier] == self.document[row] for earlier in rows[:i]) for i, row in enumerate(rows)]
        for i in np.argsort(rank, kind="stable"):
            number, middle = int(self.document[rows[i]]), int(self.span[rows[i]].sum()) // 2
            start = max(self.store.documents[number].start, middle - WITH_TOKENS)
            yield self._opening(number, start, middle, new_tokens)

    def _opening(self, document: int, start: int, middle: int, new_tokens: int) -> Opening:
        record = self.store.documents[document]
        end = min(middle + new_tokens, record.end)
        overlapping = (self.span[:, 0] < end) & (self.span[:, 1] > start)
        ids = self.store.tokens(start, end).astype(int).tolist()
        own = np.flatnonzero(self.positive[overlapping].any(axis=0)).tolist()
        return Opening(record.name, tuple(ids[: middle - start]), tuple(ids[middle - start :]), tuple(own))


def _shuffled(items: np.ndarray, seed: Sequence[int]) -> list[int]:
    return np.random.default_rng(list(seed)).permutation(items).tolist()

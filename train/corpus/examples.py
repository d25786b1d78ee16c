"""Concepts learned from a few labelled examples: a linear classifier over embeddings of chunks.

An embedding is a bag of hashed words and pairs of words, which needs nothing, or the mean hidden state of a model. The
other side of each concept is its counterexamples, the examples of other concepts, and chunks drawn from the corpus.
Some of those will be about the concept; a concept's threshold lets at most its share `most` of them pass, and never a
score below even odds.
"""

from __future__ import annotations

import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.ontology import ConceptDefinition

_WORD = re.compile(r"\w+")
_BINS = 1 << 12

Embed = Callable[[Sequence[str]], np.ndarray]


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """(N, 4096) float32 of length 1: log counts of words and pairs of words, hashed."""
    found = np.zeros((len(texts), _BINS), np.float32)
    for row, text in zip(found, texts):
        words = [word.lower() for word in _WORD.findall(text)]
        counts = Counter(_bin(word) for word in (*words, *map(" ".join, itertools.pairwise(words))))
        for place, count in counts.items():
            row[place] = np.log1p(count)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def _bin(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", errors="replace")) % _BINS


def model_embeddings(model: str) -> Embed:
    """Mean hidden states of a model, (N, D) float32 of length 1, read when first needed."""

    @cache
    def bundle():
        import steerling_jax as sj

        return sj.load(model)

    def embed(texts: Sequence[str]) -> np.ndarray:
        from steerling_jax import embed as of

        found = np.asarray(of(bundle(), list(texts)), np.float32)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    return embed


class Examples:
    """Learned concepts; an annotator. weights (F, C), bias and thresholds (C,), centre (F,) of the embeddings."""

    name = "examples"

    def __init__(
        self,
        ids: np.ndarray,
        weights: np.ndarray,
        bias: np.ndarray,
        thresholds: np.ndarray,
        centre: np.ndarray,
        embed: Embed,
    ):
        self._arrays = {"ids": ids, "weights": weights, "bias": bias, "thresholds": thresholds, "centre": centre}
        self._embed = embed

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        if not chunks:
            return []
        found = []
        for scores in self.scores([chunk.text for chunk in chunks]):
            above = np.flatnonzero(scores > self._arrays["thresholds"])
            found.append(self._arrays["ids"][above[np.argsort(-scores[above], kind="stable")]].tolist())
        return found

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C): above 0 where the concept is likelier than not."""
        features = self._embed(texts) - self._arrays["centre"]
        return features @ self._arrays["weights"] + self._arrays["bias"]

    def to_bytes(self) -> bytes:
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **self._arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, embed: Embed) -> Examples:
        with np.load(io.BytesIO(content)) as arrays:
            return cls(**arrays, embed=embed)


def learn(concepts: Sequence[ConceptDefinition], background: Sequence[str], embed: Embed) -> Examples:
    """Learns the concepts, all of which have examples and no rules. background: texts of chunks of the corpus."""
    from steerling_jax.evaluation.logistic import fit_logistic

    texts, owner, kind = list(background), [-1] * len(background), [False] * len(background)
    for number, concept in enumerate(concepts):
        for positive, given in ((True, concept.examples), (False, concept.counterexamples)):
            texts += given
            owner += [number] * len(given)
            kind += [positive] * len(given)
    features = embed(texts)
    centre = features.mean(axis=0)
    mine = np.array(owner)[:, None] == np.arange(len(concepts))
    positive = mine & np.array(kind)[:, None]
    others_examples = np.array(kind)[:, None] & ~mine
    used = mine | others_examples | (np.array(owner) < 0)[:, None]
    fitted = fit_logistic(features - centre, positive, used)
    scores = fitted.scores(features[: len(background)] - centre)
    thresholds = np.array([_threshold(scores[:, i], c.most) for i, c in enumerate(concepts)], np.float32)
    ids = np.array([concept.id for concept in concepts], np.int32)
    return Examples(ids, fitted.weights, fitted.bias, thresholds, centre, embed)


def _threshold(scores: np.ndarray, most: float) -> float:
    """The lowest score, from 0 up, that no more than the share `most` of the background's scores is above."""
    allowed = int(most * len(scores))
    return float(max(0.0, np.sort(scores)[-1 - allowed])) if len(scores) > allowed else 0.0

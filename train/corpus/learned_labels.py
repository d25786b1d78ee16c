"""An annotator that learns concepts from a few labelled examples, by linear classifiers over embeddings of chunks.

An embedding is a bag of hashed words and pairs of words, or the mean hidden state of a model. Each concept is
contrasted with its counterexamples, the examples of other concepts, and background chunks drawn from the corpus. Some
background chunks are about the concept; therefore a concept's threshold is set such that at most its share `most` of
the background is labelled, and never below a score of 0 (even odds).
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
    """Embeddings (N, 4096) float32 of length 1: logarithmic counts of words and pairs of words, hashed to bins."""
    features = np.zeros((len(texts), _BINS), np.float32)
    for row, text in zip(features, texts):
        words = [word.lower() for word in _WORD.findall(text)]
        counts = Counter(_bin(word) for word in (*words, *map(" ".join, itertools.pairwise(words))))
        for index, count in counts.items():
            row[index] = np.log1p(count)
    return _normalised(features)


def _bin(word: str) -> int:
    # CRC-32, because Python's own hash of strings differs between processes.
    return zlib.crc32(word.encode("utf-8", errors="replace")) % _BINS


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


def model_embeddings(model: str) -> Embed:
    """Embeddings by a model: mean hidden states, (N, D) float32 of length 1. The model is loaded at the first call."""

    @cache
    def bundle():
        import steerling_jax as sj

        return sj.load(model)

    def embed(texts: Sequence[str]) -> np.ndarray:
        import steerling_jax as sj

        return _normalised(np.asarray(sj.embed(bundle(), list(texts)), np.float32))

    return embed


class LearnedLabels:
    """An annotator with a linear classifier for each of C concepts over embeddings of F features.

    ids (C,), weights (F, C), bias and thresholds (C,); centre (F,) is subtracted from the embeddings.
    """

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
        by_chunk = []
        for scores in self.scores([chunk.text for chunk in chunks]):
            above = np.flatnonzero(scores > self._arrays["thresholds"])
            by_chunk.append(self._arrays["ids"][above[np.argsort(-scores[above], kind="stable")]].tolist())
        return by_chunk

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C) log odds: above 0 where the concept is more likely than not."""
        features = self._embed(texts) - self._arrays["centre"]
        return features @ self._arrays["weights"] + self._arrays["bias"]

    def to_bytes(self) -> bytes:
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **self._arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, embed: Embed) -> LearnedLabels:
        with np.load(io.BytesIO(content)) as arrays:
            return cls(**arrays, embed=embed)


def learn(concepts: Sequence[ConceptDefinition], background: Sequence[str], embed: Embed) -> LearnedLabels:
    """Fits the classifiers of concepts that have examples and no rules.

    background: texts of chunks of the corpus.
    """
    # Imports JAX, which a preparation without learned concepts does not need.
    from steerling_jax.evaluation.logistic import fit_logistic

    # One row per text: its concept (−1 for background), and whether it is an example of it.
    texts, owner, is_example = list(background), [-1] * len(background), [False] * len(background)
    for number, concept in enumerate(concepts):
        for positive, own_texts in ((True, concept.examples), (False, concept.counterexamples)):
            texts += own_texts
            owner += [number] * len(own_texts)
            is_example += [positive] * len(own_texts)
    features = embed(texts)
    centre = features.mean(axis=0)
    # (rows, concepts). A concept's classifier is fitted to its own texts, to other concepts' examples and to the
    # background. Counterexamples of other concepts are left out: they may well be about this concept.
    own = np.array(owner)[:, None] == np.arange(len(concepts))
    positive = own & np.array(is_example)[:, None]
    examples_of_others = np.array(is_example)[:, None] & ~own
    used = own | examples_of_others | (np.array(owner) < 0)[:, None]
    fitted = fit_logistic(features - centre, positive, used)
    scores = fitted.scores(features[: len(background)] - centre)
    thresholds = np.array([_threshold(scores[:, i], c.most) for i, c in enumerate(concepts)], np.float32)
    ids = np.array([concept.id for concept in concepts], np.int32)
    return LearnedLabels(ids, fitted.weights, fitted.bias, thresholds, centre, embed)


def _threshold(scores: np.ndarray, most: float) -> float:
    """The lowest threshold, at least 0, that at most the share `most` of the background's scores exceeds."""
    allowed = int(most * len(scores))
    return float(max(0.0, np.sort(scores)[-1 - allowed])) if len(scores) > allowed else 0.0

"""Collections of texts compared by the features that fire at the last token of each text, without any answers.

Source: Qwen-Scope (2026). Beside the features: word n-grams in the same figures, and the similarity of hidden states.

Legend: C collections, N texts of one, S latents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.sparse import csr_array

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.evaluation.coverage import (
    Redundancy,
    adds_nothing,
    coverage_curve,
    redundancy,
    smallest_cover,
    subset_redundancy,
)
from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.evaluation.overlap import MatchedOverlap, Overlap, matched_overlap, overlap
from steerling_jax.evaluation.sparse_tables import sample_counts, table_shape
from steerling_jax.evaluation.words import count_table, ngrams_of, vocabulary
from steerling_jax.explain.text_features import LayerFeatures, read_text_features
from steerling_jax.progress import Progress


@dataclass(frozen=True)
class Collection:
    """A named collection of texts."""

    name: str
    texts: list[str]


@dataclass(frozen=True)
class CollectionFigures:
    """What one collection's features say about it.

    redundancy: of all its texts. matched: its redundancy's share in subsets of the common size. growth: the expected
    number of features by the number of texts. adds_nothing: the texts without a feature of their own. cover: a smaller
    set of texts with all features, in the order in which they were chosen.
    """

    name: str
    redundancy: Redundancy
    matched: Estimate
    growth: dict[int, float]
    adds_nothing: list[int]
    cover: list[int]


@dataclass(frozen=True)
class Comparison:
    """The figures of each collection, and how the collections overlap.

    overlap: of all texts. matched: of subsets of one size. ngrams: the same of word n-grams. embeddings: the mean
    cosine between texts of two collections, of mean hidden rows minus the mean of all texts, (C, C).
    """

    collections: list[CollectionFigures]
    overlap: Overlap
    matched: MatchedOverlap
    ngrams: MatchedOverlap
    embeddings: np.ndarray


def compare(
    bundle: Bundle,
    autoencoder: Autoencoder,
    collections: Sequence[Collection],
    *,
    size: int,
    ngram: int,
    draws: int,
    seed: int,
    progress: Progress,
) -> Comparison:
    """Reads all texts and compares the collections. size: texts of a subset. ngram: words of an n-gram."""
    texts = [text for one in collections for text in one.texts]
    (features,) = read_text_features(bundle, [autoencoder], texts, progress)
    ends = np.cumsum([len(one.texts) for one in collections])[:-1]
    numbers = np.split(np.arange(len(texts)), ends)
    own = [features.select(rows) for rows in numbers]
    keys = jax.random.split(jax.random.key(seed), 3)
    figures = []
    for number, (one, part) in enumerate(zip(collections, own, strict=True)):
        progress("counting features", number, len(collections))
        figures.append(_figures(one.name, part, size, jax.random.fold_in(keys[0], number), draws))
    progress("counting features", len(collections), len(collections))
    fires = [part.last for part in own]
    return Comparison(
        figures,
        overlap(fires),
        matched_overlap(fires, size, keys[1], draws),
        # The same subsets of texts as for the features.
        matched_overlap(_ngram_tables([one.texts for one in collections], ngram), size, keys[1], draws),
        _similarities(features.mean, numbers),
    )


def _figures(name: str, features: LayerFeatures, size: int, key: jax.Array, draws: int) -> CollectionFigures:
    has = features.last
    N, counts = table_shape(has)[0], sample_counts(has)
    sizes = growth_sizes(N)
    return CollectionFigures(
        name=name,
        redundancy=redundancy(counts, N),
        matched=subset_redundancy(has, size, key, draws),
        growth=dict(zip(sizes, coverage_curve(counts, N, np.array(sizes)).tolist(), strict=True)),
        adds_nothing=np.flatnonzero(adds_nothing(has)).tolist(),
        cover=smallest_cover(has).tolist(),
    )


def growth_sizes(samples: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … below the number of samples, and that number."""
    steps = [base * 10**power for power in range(12) for base in (1, 2, 5)]
    return [*(one for one in steps if one < samples), samples]


def _ngram_tables(texts: Sequence[Sequence[str]], n: int) -> list[csr_array]:
    parts = [[ngrams_of(text, n) for text in one] for one in texts]
    columns = vocabulary(words for one in parts for words in one)
    return [count_table(one, columns) for one in parts]


def _similarities(means: np.ndarray, numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosines (C, C) between the rows `numbers` of means (N, D), centred; of different texts on the diagonal."""
    centred = means - means.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    sums = np.stack([unit[rows].sum(axis=0) for rows in numbers])
    sizes = np.array([len(rows) for rows in numbers])
    total = sums @ sums.T / (sizes[:, None] * sizes[None, :])
    # A text's cosine with itself is 1 and says nothing about the collection.
    own = (np.sum(sums**2, axis=1) - sizes) / np.maximum(sizes * (sizes - 1), 1)
    np.fill_diagonal(total, own)
    return total


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The figures for JSON."""
    return {
        "benchmarks": [
            {
                "name": one.name,
                "samples": one.redundancy.samples,
                "features": one.redundancy.features,
                "redundancy": one.redundancy.value,
                "redundancy_share": one.redundancy.share,
                "redundancy_share_of_subsets": one.matched._asdict(),
                "growth": [{"samples": size, "features": count} for size, count in one.growth.items()],
                "adds_nothing": one.adds_nothing,
                "cover": one.cover,
            }
            for one in comparison.collections
        ],
        "overlap": comparison.overlap._asdict(),
        "matched": matched_as_json(comparison.matched),
        "ngrams": matched_as_json(comparison.ngrams),
        "embeddings": comparison.embeddings,
    }


def matched_as_json(matched: MatchedOverlap) -> dict[str, Any]:
    """Means and intervals of an overlap of subsets, for JSON."""
    shares = {
        name: {kind: getattr(getattr(matched, kind), name) for kind in ("mean", "low", "high")}
        for name in Overlap._fields
    }
    return {"size": matched.size, "draws": matched.draws, **shares}

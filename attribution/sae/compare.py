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

from steerling_jax.evaluation.coverage import (
    Redundancy,
    adds_nothing,
    coverage_curve,
    redundancy,
    smallest_cover,
    subset_redundancy,
)
from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.evaluation.overlap import MatchedOverlap, Overlap, matched_overlap, overlap_of_counts
from steerling_jax.explain.text_features import LayerFeatures
from steerling_jax.progress import Progress


@dataclass(frozen=True)
class Collection:
    """What was read in a named collection of texts.

    samples: the number of its texts, N. counts (S,): the number of them with each feature. numbers (n,): of the texts
    whose features are held, n of N. features: of those. ngrams: for each of those, hashes of its different n-grams.
    """

    name: str
    samples: int
    counts: np.ndarray
    numbers: np.ndarray
    features: LayerFeatures
    ngrams: list[np.ndarray]


@dataclass(frozen=True)
class CollectionFigures:
    """What one collection's features say about it.

    redundancy: of all its texts. matched: its redundancy's share in subsets of the common size. growth: the expected
    number of features by the number of texts. adds_nothing: the texts without a feature of their own. cover: a smaller
    set of texts with all features, in the order in which they were chosen; both by number, of the texts that are held.
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
    collections: Sequence[Collection],
    *,
    size: int,
    draws: int,
    seed: int,
    progress: Progress,
) -> Comparison:
    """Compares what was read in collections. size: texts of a subset.

    Redundancy, growth and overlap are those of all texts; the others, which need the features of single texts, those
    of the texts whose features are held.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    figures = []
    for number, one in enumerate(collections):
        progress("counting features", number, len(collections))
        figures.append(_figures(one, size, jax.random.fold_in(keys[0], number), draws))
    progress("counting features", len(collections), len(collections))
    fires = [one.features.last for one in collections]
    return Comparison(
        figures,
        overlap_of_counts([one.counts for one in collections]),
        matched_overlap(fires, size, keys[1], draws),
        # The same subsets of texts as for the features.
        matched_overlap(_ngram_tables([one.ngrams for one in collections]), size, keys[1], draws),
        _similarities([one.features.mean for one in collections]),
    )


def _figures(one: Collection, size: int, key: jax.Array, draws: int) -> CollectionFigures:
    has, sizes = one.features.last, growth_sizes(one.samples)
    return CollectionFigures(
        name=one.name,
        redundancy=redundancy(one.counts, one.samples),
        matched=subset_redundancy(has, size, key, draws),
        growth=dict(zip(sizes, coverage_curve(one.counts, one.samples, np.array(sizes)).tolist(), strict=True)),
        adds_nothing=one.numbers[adds_nothing(has)].tolist(),
        cover=one.numbers[smallest_cover(has)].tolist(),
    )


def growth_sizes(samples: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … below the number of samples, and that number."""
    steps = [base * 10**power for power in range(12) for base in (1, 2, 5)]
    return [*(one for one in steps if one < samples), samples]


def _ngram_tables(hashes: Sequence[Sequence[np.ndarray]]) -> list[csr_array]:
    """A table of the n-grams of each collection, with the same columns for all."""
    columns = np.unique(np.concatenate([text for one in hashes for text in one]))
    tables = []
    for one in hashes:
        places = np.searchsorted(columns, np.concatenate(one))
        ends = np.concatenate([[0], np.cumsum([len(text) for text in one])])
        tables.append(csr_array((np.ones(len(places), bool), places, ends), shape=(len(one), len(columns))))
    return tables


def _similarities(means: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosines (C, C) between the mean hidden rows (N_i, D) of collections, centred; of different texts on the
    diagonal."""
    together = np.concatenate(means)
    centre = together.mean(axis=0)
    unit = [(one - centre) / np.maximum(np.linalg.norm(one - centre, axis=1, keepdims=True), 1e-12) for one in means]
    sums = np.stack([rows.sum(axis=0) for rows in unit])
    sizes = np.array([len(rows) for rows in unit])
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

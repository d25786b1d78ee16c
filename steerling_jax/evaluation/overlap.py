"""How many features two collections of samples have in common: as they are, and for subsets of one size.

A larger collection has more features and so more in common with any other. Collections of different sizes are
therefore compared by random subsets of one size, and each collection with itself by two subsets without a common
sample, which is the largest overlap that such subsets can be expected to have.

Legend: C collections, N samples of one, S features, n samples of a subset, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_array

from steerling_jax.errors import require
from steerling_jax.evaluation.coverage import random_orders
from steerling_jax.evaluation.sparse_tables import sample_counts, table_shape


class Overlap(NamedTuple):
    """Common features of collections i and j, each field (C, C): over the features of i, and over those of the
    collection that has fewer. NaN where a collection has no feature."""

    of_row: np.ndarray
    of_smaller: np.ndarray


class MatchedOverlap(NamedTuple):
    """Overlaps of random subsets of `size` samples: means over the draws, and the 2.5 % and 97.5 % percentiles.

    On the diagonal, the overlap of two subsets of one collection without a common sample.
    """

    size: int
    draws: int
    mean: Overlap
    low: Overlap
    high: Overlap


def overlap(collections: Sequence[csr_array]) -> Overlap:
    """The overlaps of collections (N_i, S), each with all its samples."""
    return overlap_of_counts([sample_counts(one) for one in collections])


def overlap_of_counts(counts: Sequence[np.ndarray]) -> Overlap:
    """The overlaps of collections with the numbers of samples (S,) that have each feature."""
    covered = np.stack([one > 0 for one in counts]).astype(np.int64)
    return _shares(covered @ covered.T, covered.sum(axis=1), covered.sum(axis=1))


def largest_matched_size(collections: Sequence[csr_array]) -> int:
    """Half of the samples of the smallest collection: every collection has two subsets of that size."""
    return min(table_shape(one)[0] for one in collections) // 2


def matched_overlap(collections: Sequence[csr_array], size: int, key: jax.Array, draws: int = 200) -> MatchedOverlap:
    """Overlaps of random subsets of `size` samples of collections (N_i, S).

    Subsets are drawn without replacement: a bootstrap sample of n holds only about 0.63 n different samples, and so
    fewer features than n samples have. The interval is that of the overlap of two such subsets.

    Raises `UserError` for a collection with fewer than 2 · size samples.
    """
    sizes = [table_shape(one)[0] for one in collections]
    for number, N in enumerate(sizes):
        require(N >= 2 * size > 0, f"Collection {number + 1} has {N} samples, but subsets of {size} need {2 * size}.",
                "size")  # fmt: skip
    orders = [random_orders(N, jax.random.fold_in(key, number), draws) for number, N in enumerate(sizes)]
    shares = []
    for draw in range(draws):
        chosen = [(one, order[draw]) for one, order in zip(collections, orders, strict=True)]
        first = np.stack([sample_counts(one[order[:size]]) > 0 for one, order in chosen])
        second = np.stack([sample_counts(one[order[size : 2 * size]]) > 0 for one, order in chosen])
        shares.append(_draw(first.astype(np.int64), second.astype(np.int64)))
    fields = [np.stack(field) for field in zip(*shares, strict=True)]
    low, high = (Overlap(*(np.quantile(field, q, axis=0) for field in fields)) for q in (0.025, 0.975))
    return MatchedOverlap(size, draws, Overlap(*(field.mean(axis=0) for field in fields)), low, high)


def _draw(first: np.ndarray, second: np.ndarray) -> Overlap:
    """Overlaps of subsets first (C, S), with those of second (C, S) on the diagonal."""
    common = first @ first.T
    np.fill_diagonal(common, np.sum(first * second, axis=1))
    shares = _shares(common, first.sum(axis=1), first.sum(axis=1))
    own = np.sum(first * second, axis=1) / np.minimum(first.sum(axis=1), second.sum(axis=1))
    np.fill_diagonal(shares.of_smaller, own)
    return shares


def _shares(common: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Overlap:
    with np.errstate(invalid="ignore", divide="ignore"):
        return Overlap(common / rows[:, None], common / np.minimum(rows[:, None], columns[None, :]))

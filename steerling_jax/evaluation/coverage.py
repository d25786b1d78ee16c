"""Which features a collection of samples covers: its redundancy, its growth, and a smaller subset that covers as many.

A feature is whatever a sample has or does not have: a latent of a sparse autoencoder that fires, or an n-gram.

Legend: N samples, S features, F the features that at least one sample has, m_j the number of samples with feature j.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_array
from scipy.special import gammaln

from steerling_jax.errors import require
from steerling_jax.evaluation.intervals import Estimate, over_draws
from steerling_jax.evaluation.sparse_tables import sample_counts, table_shape


class Redundancy(NamedTuple):
    """How soon the samples repeat each other's features.

    value: `(N + 1) / |F|² · Σ_j m_j / (m_j + 1)`. share: value / (N / |F|), the part of F that a random subset has on
    average over the sizes 1 to N; from (N + 1) / 2N, where no two samples have a feature in common, to 1, where all
    samples have the same ones. samples, features: N and |F|.
    """

    value: float
    share: float
    samples: int
    features: int


def redundancy(counts: np.ndarray, samples: int) -> Redundancy:
    """The redundancy of a collection of `samples` samples with feature counts (S,).

    The closed form of `Σ_{n=1..N} E|F(A_n)| / |F|²`, where A_n is a random subset of n samples: a feature that m
    samples have is missing from A_n with the probability C(N − m, n) / C(N, n), and for n from 0 to N these add up to
    (N + 1) / (m + 1). Source: Qwen-Scope (2026), which takes the average over subsets.

    Raises `UserError` for a collection of one sample, or without features.
    """
    require(samples >= 2, f"Redundancy needs at least 2 samples, and this collection has {samples}.", "samples")
    m = counts[counts > 0].astype(np.float64)
    F = len(m)
    require(F > 0, "No sample of the collection has a feature.", "counts")
    value = (samples + 1) / F**2 * float(np.sum(m / (m + 1)))
    return Redundancy(value, value * F / samples, samples, F)


def coverage_curve(counts: np.ndarray, samples: int, sizes: np.ndarray) -> np.ndarray:
    """The expected number of features (len(sizes),) of random subsets of the given sizes, exact (rarefaction).

    Source: Hurlbert, "The nonconcept of species diversity", 1971.
    """
    m = counts[counts > 0].astype(np.float64)[:, None]
    n = np.asarray(sizes, np.float64)[None, :]
    rest = samples - m - n
    # The logarithm of C(N − m, n) / C(N, n); where n > N − m every subset has the feature.
    missing = (
        gammaln(samples - m + 1) - gammaln(np.maximum(rest, 0) + 1) - gammaln(samples + 1) + gammaln(samples - n + 1)
    )
    return np.sum(1.0 - np.where(rest >= 0, np.exp(missing), 0.0), axis=0)


def subset_redundancy(has: csr_array, size: int, key: jax.Array, draws: int = 200) -> Estimate:
    """The share of `Redundancy` in random subsets of `size` samples of has (N, S): the mean over the draws and the
    2.5 % and 97.5 % percentiles. Subsets of one size make collections of different sizes comparable.

    Subsets are drawn without replacement, since a sample that is drawn twice would count as redundant. Draws in which
    no sample has a feature are left out. Raises `UserError` for a size beyond the collection's.
    """
    N, _ = table_shape(has)
    require(2 <= size <= N, f"size is {size}, but it must be between 2 and {N}, the number of samples.", "size")
    shares = []
    for order in random_orders(N, key, draws):
        counts = sample_counts(has[order[:size]])
        if counts.any():
            shares.append(redundancy(counts, size).share)
    return over_draws(np.array(shares), N)


def random_numbers(total: int, count: int | None, seed: int | Sequence[int]) -> np.ndarray:
    """`count` different random numbers below `total`, in order; all of them for None or where there are no more."""
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def random_orders(samples: int, key: jax.Array, draws: int) -> np.ndarray:
    """Random orders of the samples, (draws, samples) int64."""
    return np.argsort(np.asarray(jax.random.uniform(key, (draws, samples))), axis=1, kind="stable")


def adds_nothing(has: csr_array) -> np.ndarray:
    """(N,) bool: the samples all of whose features another sample has, too, so that leaving one out loses none.

    Leaving out all of them together may lose features: two equal samples both add nothing.
    """
    own = (sample_counts(has) == 1).astype(np.int64)
    return has.astype(np.int64) @ own == 0


def smallest_cover(has: csr_array) -> np.ndarray:
    """Sample numbers, in the order of their choice, that together have every feature of has (N, S).

    Greedy: the sample with the most features that are still missing comes next, the lower number first among equals;
    samples that later ones made unnecessary are taken out at the end. No polynomial algorithm is known whose covers are
    smaller by more than a constant factor than those of this one (at most ln |F| + 1 times the smallest).
    """
    ends = zip(has.indptr[:-1], has.indptr[1:], strict=True)
    rows = [has.indices[first:last][has.data[first:last] != 0] for first, last in ends]
    missing = sample_counts(has) > 0
    # A sample's gain only falls while others are chosen, so an entry whose gain is still true is the best of all.
    heap = [(-len(row), i) for i, row in enumerate(rows) if len(row)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while missing.any():
        gain, i = heapq.heappop(heap)
        now = int(missing[rows[i]].sum())
        if now == -gain:
            chosen.append(i)
            missing[rows[i]] = False
        elif now:
            heapq.heappush(heap, (-now, i))
    times = np.zeros(len(missing), np.int64)
    for i in chosen:
        times[rows[i]] += 1
    kept = []
    for i in reversed(chosen):
        if np.all(times[rows[i]] >= 2):
            times[rows[i]] -= 1
        else:
            kept.append(i)
    return np.array(kept[::-1], np.int64)

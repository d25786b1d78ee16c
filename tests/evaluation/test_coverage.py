"""Coverage, redundancy and overlap, beside their definitions by enumeration of all subsets."""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy.sparse import csr_array

from steerling_jax.errors import UserError
from steerling_jax.evaluation.coverage import (
    adds_nothing,
    coverage_curve,
    redundancy,
    smallest_cover,
    subset_redundancy,
)
from steerling_jax.evaluation.overlap import largest_matched_size, matched_overlap, overlap
from steerling_jax.evaluation.sparse_tables import sample_counts
from steerling_jax.evaluation.words import count_table, ngrams_of, vocabulary, words_of


def table(rows: list[set[int]], size: int = 12) -> csr_array:
    return csr_array(np.array([[j in row for j in range(size)] for row in rows]))


SAMPLES = [{0, 1, 2}, {1, 2, 3}, {2}, {4, 5, 6, 7}, {0, 7}, set()]


def mean_union(samples: list[set[int]], size: int) -> Fraction:
    unions = [len(set().union(*subset)) for subset in itertools.combinations(samples, size)]
    return Fraction(sum(unions), len(unions))


def test_redundancy_is_the_average_over_all_subsets():
    counts, N = sample_counts(table(SAMPLES)), len(SAMPLES)
    F = len(set().union(*SAMPLES))
    by_size = [mean_union(SAMPLES, n) for n in range(1, N + 1)]
    result = redundancy(counts, N)
    assert (result.samples, result.features) == (N, F)
    np.testing.assert_allclose(result.value, float(sum(by_size) / F**2), rtol=1e-12)
    np.testing.assert_allclose(result.share, float(sum(by_size) / (N * F)), rtol=1e-12)
    np.testing.assert_allclose(coverage_curve(counts, N, np.arange(1, N + 1)), [float(one) for one in by_size])


def test_the_share_ranges_from_disjoint_to_equal_samples():
    disjoint, equal = table([{0}, {1}, {2}, {3}]), table([{0, 1}] * 4)
    np.testing.assert_allclose(redundancy(sample_counts(disjoint), 4).share, 5 / 8)
    np.testing.assert_allclose(redundancy(sample_counts(equal), 4).share, 1.0)
    with pytest.raises(UserError, match="at least 2 samples"):
        redundancy(np.array([1]), 1)
    with pytest.raises(UserError, match="No sample"):
        redundancy(np.array([0]), 3)


def test_the_curve_of_a_large_collection_is_that_of_random_subsets():
    rng = np.random.default_rng(0)
    has = csr_array(rng.random((400, 300)) < rng.beta(0.2, 4, 300))
    expected = coverage_curve(sample_counts(has), 400, np.array([20]))[0]
    drawn = [(sample_counts(has[rng.permutation(400)[:20]]) > 0).sum() for _ in range(300)]
    assert abs(np.mean(drawn) - expected) < 4 * np.std(drawn) / np.sqrt(300)


def test_samples_that_add_nothing():
    # 1 has feature 3 for itself, 3 has 4, 5 and 6; each other sample could be left out.
    np.testing.assert_array_equal(adds_nothing(table(SAMPLES)), [True, False, True, False, True, True])


def test_a_smaller_subset_covers_the_same_features():
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = [set(rng.choice(12, rng.integers(0, 5), replace=False).tolist()) for _ in range(9)]
        chosen = smallest_cover(table(rows)).tolist()
        everything = set().union(*rows)
        assert set().union(*(rows[i] for i in chosen)) == everything
        for i in chosen:  # none is unnecessary
            assert set().union(*(rows[j] for j in chosen if j != i)) != everything
        best = next(n for n in range(10) for subset in itertools.combinations(rows, n)
                    if set().union(*subset) == everything)  # fmt: skip
        assert len(chosen) <= best + 1
    # The first choice, the largest sample, becomes unnecessary.
    assert smallest_cover(table([{0, 1, 2, 3}, {0, 1, 4}, {2, 3, 5}])).tolist() == [1, 2]


def test_overlaps_of_whole_collections():
    first, second = table([{0, 1}, {2, 3}]), table([{3, 4}, {3}, {5}])
    result = overlap([first, second])
    np.testing.assert_allclose(result.of_row, [[1, 1 / 4], [1 / 3, 1]])
    np.testing.assert_allclose(result.of_smaller, [[1, 1 / 3], [1 / 3, 1]])


def test_overlaps_of_subsets_of_one_size():
    # All samples of a collection have the same features, so every subset has the same overlap.
    one, other = table([{0, 1}] * 6), table([{1, 2, 3}] * 5)
    assert largest_matched_size([one, other]) == 2
    result = matched_overlap([one, other], 2, jax.random.key(0), draws=5)
    for shares in (result.mean, result.low, result.high):
        np.testing.assert_allclose(shares.of_row, [[1, 1 / 2], [1 / 3, 1]])
        np.testing.assert_allclose(shares.of_smaller, [[1, 1 / 2], [1 / 2, 1]])
    with pytest.raises(UserError, match="Collection 2 has 5 samples"):
        matched_overlap([one, other], 3, jax.random.key(0))


def test_matched_overlap_does_not_grow_with_the_number_of_samples():
    """Two random halves of one population, one of them much larger: matched, they overlap as one does with itself."""
    rng = np.random.default_rng(2)
    has = csr_array(rng.random((300, 400)) < rng.beta(0.3, 12, 400))
    small, large = has[:40], has[40:]
    result = matched_overlap([small, large], 20, jax.random.key(1), draws=60)
    ratio = result.mean.of_row / np.diag(result.mean.of_row)[:, None]
    np.testing.assert_allclose(ratio, 1.0, atol=0.12)
    assert np.all(result.low.of_row < result.mean.of_row)
    assert np.all(result.mean.of_row < result.high.of_row)
    unmatched = overlap([small, large]).of_row
    assert unmatched[0, 1] > result.mean.of_row[0, 1] + 0.2


def test_words_and_ngrams():
    assert words_of("A cat, a Cat.") == ["a", "cat", ",", "a", "cat", "."]
    assert ngrams_of("A cat sat", 2) == ["a cat", "cat sat"]
    assert ngrams_of("A cat", 3) == ["a cat"]
    parts = [words_of("a b a"), words_of("b c")]
    columns = vocabulary(parts)
    assert columns == {"a": 0, "b": 1, "c": 2}
    np.testing.assert_array_equal(count_table(parts, columns).toarray(), [[2, 1, 0], [0, 1, 1]])
    assert vocabulary(parts, least=2) == {"b": 0}
    np.testing.assert_array_equal(count_table([["c", "b"]], {"b": 0}).toarray(), [[1]])


def test_redundancy_of_subsets_of_one_size():
    equal = table([{0, 1}] * 5)
    assert subset_redundancy(equal, 3, jax.random.key(0), draws=5)[:3] == (1.0, 1.0, 1.0)
    half = table([{0}, {0}, {1}, {1}])
    result = subset_redundancy(half, 2, jax.random.key(0), draws=400)
    # Two of the four share their feature in 1 of 3 pairs: a share of 1 there, and of 3 / 4 in the others.
    np.testing.assert_allclose(result.mean, 1 / 3 * 1 + 2 / 3 * 3 / 4, atol=0.02)
    assert (result.low, result.high, result.values) == (0.75, 1.0, 4)
    with pytest.raises(UserError, match="between 2 and 5"):
        subset_redundancy(equal, 6, jax.random.key(0))

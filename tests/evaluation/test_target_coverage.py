"""Coverage of target features: counts, and what texts drawn from a pool cover, beside enumeration."""

from __future__ import annotations

from itertools import combinations

import jax
import numpy as np
import pytest
from scipy.sparse import csr_array

from steerling_jax.errors import UserError
from steerling_jax.evaluation.target_coverage import (
    chance_of_coverage,
    coverage_difference,
    covered_in_order,
    natural_coverage,
    target_coverage,
)

FIRES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


def test_counts_and_what_is_missing():
    latents = np.array([[0, 2.0, 0, 0.5], [0, 3.0, 0, 0], [0, 0, 0, 0]], np.float32)
    coverage = target_coverage(csr_array(latents), [3, 0, 1], least=2)
    assert coverage.texts.tolist() == [1, 0, 2]
    assert coverage.missing.tolist() == [1, 2, 0]
    assert coverage.covered.tolist() == [False, False, True]
    np.testing.assert_array_equal(coverage.largest, np.array([0.5, 0, 3.0], np.float32))
    assert (coverage.samples, coverage.fired, coverage.features) == (3, 2, 4)
    with pytest.raises(UserError, match="no target features"):
        target_coverage(csr_array(latents), [])


def test_a_pool_covers_what_its_subsets_cover():
    curve = natural_coverage(FIRES, 4, jax.random.key(0))
    for size in range(5):
        subsets = [FIRES[list(rows)].any(axis=0) for rows in combinations(range(5), size)]
        assert curve.mean[size] == pytest.approx(np.mean([one.sum() for one in subsets]))
        np.testing.assert_allclose(chance_of_coverage(FIRES, size), np.mean(subsets, axis=0))
    assert np.all((curve.low <= curve.mean) & (curve.mean <= curve.high))
    assert (curve.low[4], curve.high[4]) == (2, 2)  # any four texts have both features
    with pytest.raises(UserError, match="The pool has 5 texts, but 6"):
        natural_coverage(FIRES, 6, jax.random.key(0))
    assert natural_coverage(FIRES[:, :0], 3, jax.random.key(0)).mean.tolist() == [0, 0, 0, 0]


def test_texts_in_order():
    assert covered_in_order(FIRES).tolist() == [0, 1, 2, 2, 2, 2]
    assert covered_in_order(FIRES[:0]).tolist() == [0]


def test_a_difference_is_over_the_targets():
    ours, others = np.array([1, 1, 1, 1, 0]), np.array([0.5, 0.5, 0.5, 0.5, 0.5])
    estimate = coverage_difference(ours, others, jax.random.key(0))
    assert estimate.mean == pytest.approx(0.3)
    assert -0.5 <= estimate.low < 0.3 < estimate.high <= 0.5
    assert estimate.values == 5

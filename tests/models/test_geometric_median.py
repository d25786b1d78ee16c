"""The geometric median of rows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from steerling_jax.models.geometric_median import geometric_median


def test_the_geometric_median_is_not_moved_by_outliers():
    rng = np.random.default_rng(4)
    rows = rng.normal(3.0, 1.0, (2000, 8))
    rows[:100] += 1e4
    median = np.asarray(geometric_median(jnp.asarray(rows, jnp.float32), jnp.ones(len(rows))))
    assert np.abs(median - 3.0).max() < 0.3
    assert np.abs(rows.mean(0) - 3.0).min() > 100
    distances = lambda point: np.linalg.norm(rows - point, axis=1).sum()  # noqa: E731
    for shift in np.eye(8) * 0.05:
        assert distances(median) <= distances(median + shift) + 1.0

"""Confidence intervals: where they end, and what is left out of them."""

from __future__ import annotations

import jax
import numpy as np

from steerling_jax.evaluation.intervals import Estimate, bootstrap, bootstrap_mean, over_draws

KEY = jax.random.key(0)


def test_an_interval_over_draws_ends_at_its_percentiles():
    found = over_draws(np.arange(1001.0), 7)
    np.testing.assert_allclose(found, Estimate(500.0, 25.0, 975.0, 7))
    nothing = over_draws(np.array([]), 7)
    assert np.isnan(nothing[:3]).all()
    assert nothing.values == 7


def test_a_bootstrapped_mean_has_the_interval_of_its_standard_error():
    """Of 400 units with deviation 1 that is 1.96 / 20 to either side; the two functions draw differently."""
    values = np.random.default_rng(0).normal(size=400)
    half = 1.96 * values.std() / 20
    alone = bootstrap_mean([values], KEY, draws=4000)
    assert alone is not None
    for found in (bootstrap(lambda at: float(values[at].mean()), 400, KEY, draws=4000), alone):
        np.testing.assert_allclose(found.mean, values.mean(), atol=1e-6)
        np.testing.assert_allclose([found.low, found.high], values.mean() + np.array([-half, half]), atol=0.08 * half)


def test_resamples_without_a_value_are_left_out():
    """Half of the resamples of one unit in two have none; what remains is 1."""
    found = bootstrap(lambda at: 1.0 if at[0] else float("nan"), 2, KEY)
    assert (found.low, found.high) == (1.0, 1.0)
    assert np.isnan(bootstrap(lambda at: 1.0, 0, KEY).mean)

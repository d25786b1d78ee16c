"""Confidence intervals by bootstrap: the 2.5 % and 97.5 % percentiles of a statistic over resampled units.

Written out instead of using `scipy.stats.bootstrap` because that function resamples by a NumPy generator, which would
change every published interval, has no resampling within groups, and gives NaN where a single resample has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np


class Estimate(NamedTuple):
    """A mean or other statistic, the ends of its 95 % interval, and the number of values it is computed from."""

    mean: float
    low: float
    high: float
    values: int


def bootstrap_mean(groups: Sequence[np.ndarray], key: jax.Array, draws: int = 1000) -> Estimate | None:
    """The mean of the groups' means; NaNs are left out. None where there is no value.

    Values are resampled within each group, so the interval is for the given groups and not for others like them.
    """
    groups = [g[~np.isnan(g)] for g in (np.asarray(group, np.float64) for group in groups)]
    groups = [g for g in groups if len(g)]
    if not groups:
        return None
    sizes = [len(g) for g in groups]
    uniform = np.asarray(jax.random.uniform(key, (draws, sum(sizes))))
    drawn = np.split(uniform, np.cumsum(sizes)[:-1], axis=1)
    means = np.mean([g[(u * len(g)).astype(int)].mean(axis=1) for g, u in zip(groups, drawn)], axis=0)
    return Estimate(float(np.mean([g.mean() for g in groups])), *_ends(means), sum(sizes))


def bootstrap(statistic: Callable[[np.ndarray], float], units: int, key: jax.Array, draws: int = 1000) -> Estimate:
    """A statistic of `units` units, which are resampled: `statistic` gets the numbers (units,) int of the drawn units.

    Resamples whose statistic is NaN are left out.
    """
    if not units:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rows = np.asarray(jax.random.randint(key, (draws, units), 0, units))
    values = np.array([statistic(one) for one in rows])
    return Estimate(float(statistic(np.arange(units))), *_ends(values[~np.isnan(values)]), units)


def over_draws(values: np.ndarray, units: int) -> Estimate:
    """The mean of the values (R,) that a statistic has over R random draws, and their percentiles; NaN for no values.

    units: the number of units that the estimate reports.
    """
    return Estimate(float(values.mean()) if len(values) else float("nan"), *_ends(values), units)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles; NaN without values."""
    low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (float("nan"),) * 2
    return float(low), float(high)

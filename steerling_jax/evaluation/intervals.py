"""How sure a mean is: percentile intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np


class Estimate(NamedTuple):
    """A mean, the ends of its 95 % interval, and of how many values it is."""

    mean: float
    low: float
    high: float
    values: int


def bootstrap_mean(groups: Sequence[np.ndarray], key: jax.Array, draws: int = 1000) -> Estimate | None:
    """The mean of the groups' means, NaNs left out; values are drawn again within each group, groups stay.

    None where there is no value.
    """
    groups = [g[~np.isnan(g)] for g in (np.asarray(group, np.float64) for group in groups)]
    groups = [g for g in groups if len(g)]
    if not groups:
        return None
    sizes = [len(g) for g in groups]
    uniform = np.asarray(jax.random.uniform(key, (draws, sum(sizes))))
    drawn = np.split(uniform, np.cumsum(sizes)[:-1], axis=1)
    means = np.mean([g[(u * len(g)).astype(int)].mean(axis=1) for g, u in zip(groups, drawn)], axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(np.mean([g.mean() for g in groups])), float(low), float(high), sum(sizes))


def bootstrap(statistic: Callable[[np.ndarray], float], units: int, key: jax.Array, draws: int = 1000) -> Estimate:
    """Any figure of `units` units, drawn again: statistic(rows (units,) int) gives it, with all rows once and with each
    draw. Draws without a figure (NaN) are left out."""
    if not units:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rows = np.asarray(jax.random.randint(key, (draws, units), 0, units))
    found = np.array([statistic(one) for one in rows])
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, (0.025, 0.975)) if len(found) else (float("nan"),) * 2
    return Estimate(float(statistic(np.arange(units))), float(low), float(high), units)

"""Areas over perturbation curves, exact over all orders, from the values of all subsets of the inputs.

A perturbation curve is the target's value while input features are removed one after another, in an order of
importance. Inputs are F features (tokens, or groups of them). `values[s]` is the value if only those features are
present whose bits are set in s. With all 2^F values, the best and the worst order, the mean of all orders and Shapley
values are exact; nothing is searched or sampled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Limits(NamedTuple):
    """The lowest, the highest and the mean comprehensiveness of all orders of the features.

    Sufficiency has the same limits, because it is the comprehensiveness of the reversed order.
    """

    low: float
    high: float
    mean: float


def subsets(features: int) -> np.ndarray:
    """Which features each subset has, (2^F, F) bool: row s has the features whose bits are set in s."""
    return (np.arange(2**features)[:, None] >> np.arange(features)[None, :] & 1).astype(bool)


def comprehensiveness(values: np.ndarray, order: np.ndarray) -> float:
    """Mean decrease of the value when the first k features of `order` are removed, over k = 1 … F − 1."""
    subset, decreases = len(values) - 1, []
    for feature in order[:-1]:
        subset &= ~(1 << int(feature))
        decreases.append(values[-1] - values[subset])
    return float(np.mean(decreases))


def sufficiency(values: np.ndarray, order: np.ndarray) -> float:
    """Mean decrease of the value when only the first k features are present: low for a good order."""
    return comprehensiveness(values, order[::-1])


def limits(values: np.ndarray) -> Limits:
    """The limits over all F! orders, by dynamic programming over the 2^F subsets.

    The best order that leads to a subset is a best order to one of the subsets with one more feature, followed by the
    removal of that feature.
    """
    F = int(math.log2(len(values)))
    sizes = subsets(F).sum(axis=1)
    # The mean runs over k = 1 … F − 1, so the full and the empty subset do not count.
    decrease = np.where((sizes > 0) & (sizes < F), values[-1] - values, 0.0)
    extremes = []
    for better in (np.minimum, np.maximum):
        reached = np.zeros(len(values))
        # Removing a feature lowers s, so every predecessor of s has been computed.
        for s in range(len(values) - 2, -1, -1):
            predecessors = [reached[s | 1 << i] for i in range(F) if not s >> i & 1]
            reached[s] = better.reduce(predecessors) + decrease[s]
        extremes.append(reached[0] / (F - 1))
    # In a random order every subset of one size is equally likely.
    by_size = [decrease[sizes == size].mean() for size in range(1, F)]
    return Limits(float(extremes[0]), float(extremes[1]), float(np.mean(by_size)))


def shapley(values: np.ndarray) -> np.ndarray:
    """Shapley values (F,) of the features."""
    F = int(math.log2(len(values)))
    present = subsets(F)
    sizes = present.sum(axis=1)
    # The share of orders in which exactly a given subset of size s precedes the feature.
    weight = np.array([math.factorial(s) * math.factorial(F - s - 1) / math.factorial(F) for s in range(F)])
    result = np.zeros(F)
    for i in range(F):
        without = np.flatnonzero(~present[:, i])
        result[i] = np.sum(weight[sizes[without]] * (values[without | 1 << i] - values[without]))
    return result

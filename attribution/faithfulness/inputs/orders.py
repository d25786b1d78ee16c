"""How good an order of importance is: area over the perturbation curve, from the values of all subsets of inputs.

Inputs are F features (tokens, or runs of them). `values[s]` is the target's value with just the features kept whose
bits are set in s. With all 2^F values, the best and the worst order and the mean of all orders are exact, and so are
Shapley values: nothing is searched or sampled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Limits(NamedTuple):
    """The least and the largest comprehensiveness that any order of the features reaches, and the mean of all orders.
    Sufficiency has the same limits, as it is the comprehensiveness of the order turned round."""

    low: float
    high: float
    mean: float


def subsets(features: int) -> np.ndarray:
    """(2^F, F) bool: row s keeps the features whose bits are set in s."""
    return (np.arange(2**features)[:, None] >> np.arange(features)[None, :] & 1).astype(bool)


def comprehensiveness(values: np.ndarray, order: np.ndarray) -> float:
    """Mean over k in 1 … F − 1 of how much the value falls when the first k features of `order` are taken away."""
    kept, fell = len(values) - 1, []
    for feature in order[:-1]:
        kept &= ~(1 << int(feature))
        fell.append(values[-1] - values[kept])
    return float(np.mean(fell))


def sufficiency(values: np.ndarray, order: np.ndarray) -> float:
    """Mean over k of how much it falls when only the first k features are kept: low for a good order."""
    return comprehensiveness(values, order[::-1])


def limits(values: np.ndarray) -> Limits:
    """Over all F! orders, by going through the subsets once: the best way to a subset ends with its best last step."""
    F = int(math.log2(len(values)))
    sizes = subsets(F).sum(axis=1)
    fell = np.where((sizes > 0) & (sizes < F), values[-1] - values, 0.0)
    ends = []
    for better in (np.minimum, np.maximum):
        reached = np.zeros(len(values))
        for kept in range(len(values) - 2, -1, -1):  # from few features taken away to many
            came_from = [reached[kept | 1 << i] for i in range(F) if not kept >> i & 1]
            reached[kept] = better.reduce(came_from) + fell[kept]
        ends.append(reached[0] / (F - 1))
    by_size = [fell[sizes == size].mean() for size in range(1, F)]
    return Limits(float(ends[0]), float(ends[1]), float(np.mean(by_size)))


def shapley(values: np.ndarray) -> np.ndarray:
    """Shapley values (F,) of the features."""
    F = int(math.log2(len(values)))
    kept = subsets(F)
    sizes = kept.sum(axis=1)
    weight = np.array([math.factorial(s) * math.factorial(F - s - 1) / math.factorial(F) for s in range(F)])
    found = np.zeros(F)
    for i in range(F):
        without = np.flatnonzero(~kept[:, i])
        found[i] = np.sum(weight[sizes[without]] * (values[without | 1 << i] - values[without]))
    return found

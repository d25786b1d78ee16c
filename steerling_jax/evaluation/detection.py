"""How well scores tell chunks with a concept from chunks without: the area under the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Auc:
    """Area of each concept that has enough positives and a negative, and their mean (None if there are none)."""

    concepts: list[int]
    positives: list[int]
    each: list[float]

    @property
    def macro(self) -> float | None:
        return float(np.mean(self.each)) if self.each else None


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive's score is above a negative's, ties counted half; scores (m,), positive (m,) bool."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    p = int(positive.sum())
    n = len(positive) - p
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * n))


def macro_auc(scores: np.ndarray, positive: np.ndarray, at_least: int) -> Auc:
    """For scores and positive (m, C), over the concepts with `at_least` positives."""
    counts = positive.sum(axis=0)
    chosen = np.flatnonzero((counts >= at_least) & (counts < len(positive)))
    each = [auc(scores[:, c], positive[:, c]) for c in chosen]
    return Auc(chosen.tolist(), counts[chosen].tolist(), each)

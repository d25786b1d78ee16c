"""How well scores separate chunks with a concept from chunks without it: the area under the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Auc:
    """The area of each concept that has enough positive chunks and a negative one.

    concepts: their ids; positives: the number of positive chunks of each; each: the areas.
    """

    concepts: list[int]
    positives: list[int]
    each: list[float]

    @property
    def macro(self) -> float | None:
        """The mean of the areas, None where there are none."""
        return float(np.mean(self.each)) if self.each else None


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve, for scores (m,) and positive (m,) bool, of which there must be both kinds.

    It is the probability that a positive's score is above a negative's, with ties counted half: the Mann-Whitney
    statistic over the number of pairs.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def auc_table(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The areas (C, J) of J scores (m, J) for each of C labels, positive (m, C) bool; 0.5 where a label has no
    positive or no negative.

    The scores are ranked once for all labels, so that many features can be compared for many concepts.
    """
    positives = positive.sum(axis=0)[:, None].astype(float)
    ranks = positive.T.astype(float) @ rankdata(scores, axis=0)
    pairs = positives * (len(positive) - positives)
    return np.where(pairs > 0, (ranks - positives * (positives + 1) / 2) / np.maximum(pairs, 1), 0.5)


def macro_auc(scores: np.ndarray, positive: np.ndarray, at_least: int) -> Auc:
    """The areas for scores (m, C) and positive (m, C) bool, of the concepts with `at_least` positive chunks."""
    counts = positive.sum(axis=0)
    eligible = np.flatnonzero((counts >= at_least) & (counts < len(positive)))
    each = [auc(scores[:, c], positive[:, c]) for c in eligible]
    return Auc(eligible.tolist(), counts[eligible].tolist(), each)

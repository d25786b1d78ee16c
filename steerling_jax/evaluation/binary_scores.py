"""F1, precision, recall and AUC of a binary classifier, with intervals over the texts.

Legend: N texts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.intervals import Estimate, bootstrap


class BinaryScores(NamedTuple):
    """Each with its 95 % bootstrap interval over the texts."""

    f1: Estimate
    precision: Estimate
    recall: Estimate
    auc: Estimate


def f1_score(predicted: np.ndarray, positive: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), for (N,) bool; 0 where no positive text is found, NaN without positive texts."""
    if not positive.any():
        return float("nan")
    hits = float(np.sum(predicted & positive))
    return 2 * hits / float(predicted.sum() + positive.sum())


def precision_score(predicted: np.ndarray, positive: np.ndarray) -> float:
    """The share of the texts found that are positive; NaN where none is found."""
    return float(positive[predicted].mean()) if predicted.any() else float("nan")


def recall_score(predicted: np.ndarray, positive: np.ndarray) -> float:
    """The share of the positive texts that are found; NaN without positive texts."""
    return float(predicted[positive].mean()) if positive.any() else float("nan")


def auc_score(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve; NaN for texts of one class."""
    return auc(scores, positive) if positive.any() and not positive.all() else float("nan")


def point_scores(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float, float, float]:
    """F1, precision, recall and AUC of scores (N,), which say positive where they are above 0."""
    predicted = scores > 0
    return (
        f1_score(predicted, positive),
        precision_score(predicted, positive),
        recall_score(predicted, positive),
        auc_score(scores, positive),
    )


def binary_scores(scores: np.ndarray, positive: np.ndarray, key: jax.Array, draws: int = 1000) -> BinaryScores:
    """The figures of scores (N,) for labels positive (N,) bool, with intervals.

    Resamples in which a figure has no value are left out of its interval.
    """
    predicted, N = scores > 0, len(positive)
    return BinaryScores(
        bootstrap(lambda at: f1_score(predicted[at], positive[at]), N, key, draws),
        bootstrap(lambda at: precision_score(predicted[at], positive[at]), N, key, draws),
        bootstrap(lambda at: recall_score(predicted[at], positive[at]), N, key, draws),
        bootstrap(lambda at: auc_score(scores[at], positive[at]), N, key, draws),
    )

"""Controls for a classifier of features: difference of means and logistic regression, on whatever a text is read as.

Legend: N texts, P properties of a text (hidden width, latents or words).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, diags_array, issparse

from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.feature_rules import check_labels
from steerling_jax.evaluation.logistic import fit_logistic

Scores = Callable[[Any], np.ndarray]  # texts (N, P) to scores (N,), positive where above 0

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 4


def difference_of_means(rows: np.ndarray, positive: np.ndarray) -> Scores:
    """A score along the difference of the classes' mean rows; rows (N, P), positive (N,) bool. It is 0 halfway."""
    check_labels(positive)
    means = rows[positive].mean(axis=0), rows[~positive].mean(axis=0)
    direction, middle = means[0] - means[1], (means[0] + means[1]) / 2
    return lambda other: (other - middle) @ direction


def logistic_probe(rows: np.ndarray | csr_array, positive: np.ndarray, decays: Sequence[float] = DECAYS) -> Scores:
    """Logistic regression on rows (N, P), with the weight decay that has the best AUC in cross-validation.

    Dense rows are standardised, sparse ones divided by the largest value of each column. Both classes have the same
    weight. Raises `UserError` for texts of one class only.
    """
    check_labels(positive)
    scale = scaling(rows)
    scaled, best = scale(rows), decays[0]
    fold = _folds(positive)
    if len(decays) > 1 and min(positive.sum(), (~positive).sum()) >= _FOLDS:
        areas = []
        for decay in decays:
            held = np.zeros(len(positive))
            for number in range(_FOLDS):
                inside = fold != number
                held[~inside] = _fit(scaled[inside], positive[inside], decay)(scaled[~inside])
            areas.append(auc(held, positive))
        best = decays[int(np.argmax(areas))]
    fitted = _fit(scaled, positive, best)
    return lambda other: fitted(scale(other))


def _fit(rows: np.ndarray | csr_array, positive: np.ndarray, decay: float) -> Scores:
    labels = positive[:, None]
    model = fit_logistic(rows, labels, np.ones_like(labels), decay)
    return lambda other: model.scores(other)[:, 0]


def scaling(rows: np.ndarray | csr_array) -> Callable[[Any], Any]:
    """What brings the columns of rows (N, P), and of others, to one scale: dense ones to the mean 0 and the deviation 1
    that `rows` have, sparse ones to a largest value of 1."""
    if issparse(rows):
        largest = abs(rows).max(axis=0).toarray().reshape(-1)  # pyright: ignore[reportAttributeAccessIssue]
        factors = diags_array(1 / np.where(largest > 0, largest, 1.0))
        return lambda other: (other @ factors).tocsr()
    dense = np.asarray(rows)
    mean, deviation = dense.mean(axis=0), dense.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return lambda other: (other - mean) / deviation


def _folds(positive: np.ndarray) -> np.ndarray:
    """The part (N,) of each text, with both classes spread evenly over the parts."""
    fold = np.zeros(len(positive), np.int64)
    for kind in (positive, ~positive):
        fold[kind] = np.arange(kind.sum()) % _FOLDS
    return fold

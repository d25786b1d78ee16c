"""Logistic regression on dense features, for concepts learned from a few examples.

Legend: N texts, F features, C concepts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array, issparse
from scipy.special import expit


class Logistic(NamedTuple):
    """weights (F, C) and bias (C,), float32. The score of x is x · weights + bias; its sigmoid is a probability for
    positive and negative examples in equal number."""

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray | csr_array) -> np.ndarray:
        """The scores (N, C) of features (N, F)."""
        return features @ self.weights + self.bias


def fit_logistic(
    features: np.ndarray | csr_array, positive: np.ndarray, used: np.ndarray, decay: float = 1e-3
) -> Logistic:
    """Fits one classifier a concept to features (N, F), dense or sparse, and labels positive (N, C) bool.

    used (N, C) bool: which texts count for which concept. For each concept, its positive and its negative texts have
    the same total weight, so every concept needs a text of either kind. decay: the weight of ‖weights‖². The result is
    the minimum of a convex function, found by L-BFGS, and deterministic.
    """
    positive, used = np.asarray(positive, bool), np.asarray(used, bool)
    rows: Any = features.astype(np.float64) if issparse(features) else np.asarray(features, np.float64)
    sign = np.where(positive, 1.0, -1.0)
    share = np.zeros(positive.shape)
    for kind in (positive & used, ~positive & used):
        share += kind * (0.5 / np.maximum(kind.sum(axis=0), 1))
    F, C = rows.shape[1], positive.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """`Σ share · log(1 + exp(−sign · score)) + decay · ‖weights‖²` and its gradient, for the weights and then the
        bias, (F·C + C,)."""
        weights, bias = flat[: F * C].reshape(F, C), flat[F * C :]
        margin = sign * (rows @ weights + bias)
        value = np.sum(share * np.logaddexp(0, -margin)) + decay * np.sum(weights**2)
        by_score = -share * sign * expit(-margin)
        by_weights = rows.T @ by_score + 2 * decay * weights
        return value, np.concatenate([by_weights.reshape(-1), by_score.sum(axis=0)])

    # The concepts do not interact, so one search over all of them finds each one's own minimum.
    found = minimize(loss, np.zeros(F * C + C), jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 1e-10}).x
    return Logistic(found[: F * C].reshape(F, C).astype(np.float32), found[F * C :].astype(np.float32))

"""Redundancy of a benchmark by the scores of models: how well a few samples rank the models as all of them do.

Legend: M models, N samples, R random orders of the samples.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy.stats import rankdata

from steerling_jax.errors import require
from steerling_jax.evaluation.coverage import random_orders
from steerling_jax.evaluation.rank_correlation import rank_correlations


def ranking_agreement(scores: np.ndarray, key: jax.Array, draws: int = 200) -> float:
    """Spearman's correlation, over models, of the mean score on n random samples with that on all N, averaged over the
    sizes n from 1 to N − 1 and over random subsets.

    scores (M, N): of each model on each sample, larger is better. 1 where any sample ranks the models as the whole
    does, so that the others add nothing. Subsets on which all models have the same score are left out; NaN where these
    are all. Raises `UserError` for fewer than 3 models or 2 samples.
    """
    M, N = scores.shape
    require(M >= 3, f"There are {M} models, but a ranking needs at least 3.", "scores")
    require(N >= 2, f"There are {N} samples, but subsets need at least 2.", "scores")
    orders = random_orders(N, key, draws)
    # The sums over the first n samples of each order, (R, N − 1, M): means differ from sums by a factor alone.
    sums = np.cumsum(scores.T[orders], axis=1)[:, :-1]
    whole = np.broadcast_to(scores.sum(axis=1), sums.shape)
    correlations = rank_correlations(sums.reshape(-1, M), whole.reshape(-1, M))
    return float(np.nanmean(correlations)) if np.isfinite(correlations).any() else float("nan")


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of x (Q,) and y (Q,); NaN where one of them is constant."""
    return float(rank_correlations(x[None], y[None])[0])


def partial_rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of x (Q,) and y (Q,) without what the ranks of `given` (Q,) explain of both, linearly; NaN
    where they explain one of them entirely."""
    basis = np.stack([np.ones(len(given)), rankdata(given)], axis=1)
    rest = []
    for values in (x, y):
        ranks = rankdata(values)
        residual = ranks - basis @ np.linalg.lstsq(basis, ranks, rcond=None)[0]
        if np.sum(residual**2) <= 1e-9 * np.sum((ranks - ranks.mean()) ** 2):
            return float("nan")
        rest.append(residual / np.linalg.norm(residual))
    return float(rest[0] @ rest[1])

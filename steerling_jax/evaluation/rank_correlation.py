"""Spearman's rank correlation of many pairs of rows at once.

On the ranks of `scipy.stats.rankdata`; `scipy.stats.spearmanr` takes one pair at a time and warns of constant rows.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of a (Q, m) with the same row of b, (Q,) float64; NaN where a row is constant.

    Equal values of a row share their mean rank.
    """
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rankdata(rows, axis=1) for rows in (a, b)))
    norm = np.sqrt(np.sum(x * x, axis=1) * np.sum(y * y, axis=1))
    return np.where(norm > 0, np.sum(x * y, axis=1) / np.where(norm > 0, norm, 1), np.nan)

"""Is a ranking of training data right? By retraining without it, by a step on it, by where the truth was put."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def rank_correlations(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row, (Q,) for (Q, m) each; NaN where a row is constant."""
    a, b = (np.stack([_ranks(row) for row in rows]) for rows in (predicted, observed))
    norm = np.sqrt(np.sum(a * a, axis=1) * np.sum(b * b, axis=1))
    return np.where(norm > 0, np.sum(a * b, axis=1) / np.where(norm > 0, norm, 1), np.nan)


def _ranks(row: np.ndarray) -> np.ndarray:
    """Centred ranks (m,), equal values sharing theirs."""
    _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse] - (len(row) + 1) / 2


def datamodelling_scores(scores: np.ndarray, kept: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The linear datamodelling score of each query, (Q,): does the sum of a corpus's scores tell how well it teaches
    the answer?

    scores (Q, N) of chunks, kept (m, N) bool: what each corpus has, answers (m, Q): of the model trained on it.
    Source: Park et al., TRAK (2023); Ilyas et al., Datamodels (2022).
    """
    return rank_correlations(scores @ kept.T.astype(np.float64), answers.T)


def reciprocal_rank(scores: np.ndarray, evidence: Sequence[int]) -> float:
    """1 over the place of the first evidence among scores (N,). Of equal scores the evidence comes last."""
    return 1.0 / min(_place(scores, chunk, evidence) for chunk in evidence) if evidence else math.nan


def recall_at(scores: np.ndarray, evidence: Sequence[int], k: int) -> float:
    """Share of the evidence (at most k of it) among the k highest scores (N,). Of equal scores the evidence comes
    last."""
    if not evidence:
        return math.nan
    others = np.delete(scores, evidence)
    found = sorted(scores[list(evidence)], reverse=True)
    places = [int(np.sum(others >= value)) + before + 1 for before, value in enumerate(found)]
    return sum(place <= k for place in places) / min(len(evidence), k)


def _place(scores: np.ndarray, chunk: int, evidence: Sequence[int]) -> int:
    """From 1, other evidence not counted."""
    others = np.delete(scores, evidence)
    return int(np.sum(others >= scores[chunk])) + 1

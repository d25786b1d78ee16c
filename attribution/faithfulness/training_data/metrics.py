"""Is a ranking of training data right? By retraining without it, by a step on it, by where the truth was put."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steerling_jax.evaluation.rank_correlation import rank_correlations


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

"""Metrics of rankings of training data: by retraining, and by planted evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steerling_jax.evaluation.rank_correlation import rank_correlations


def datamodelling_scores(scores: np.ndarray, members: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Linear datamodelling score of each query, (Q,).

    The rank correlation, over m corpora, of the sum of a corpus's scores with the answer of the model trained on it.
    scores: (Q, N) of chunks; members: (m, N) bool, the chunks of each corpus; answers: (m, Q) log-probabilities.
    Source: Park et al., TRAK (2023); Ilyas et al., Datamodels (2022).
    """
    return rank_correlations(scores @ members.T.astype(np.float64), answers.T)


def perfect_score(agreement: np.ndarray) -> float:
    """The datamodelling score that the expected answers would reach, from the correlations (Q,) of two seeds' answers.

    An answer is its expectation over seeds plus noise. If a share ρ of its variance is the expectation's, two seeds
    correlate with ρ, and the expectation itself correlates with one seed with √ρ, which is more: it has no noise of its
    own. NaN where no correlation is defined; 0 where seeds do not agree.
    """
    known = agreement[~np.isnan(agreement)]
    return math.sqrt(max(known.mean(), 0.0)) if len(known) else math.nan


def reciprocal_rank(scores: np.ndarray, evidence: Sequence[int]) -> float:
    """1 / (rank of the first evidence) by scores (N,); among equal scores the evidence is ranked last."""
    return 1.0 / min(_rank(scores, chunk, evidence) for chunk in evidence) if evidence else math.nan


def recall_at(scores: np.ndarray, evidence: Sequence[int], k: int) -> float:
    """Share of the evidence (of at most k chunks of it) among the k highest of scores (N,).

    Among equal scores the evidence is ranked last.
    """
    if not evidence:
        return math.nan
    others = np.delete(scores, evidence)
    values = sorted(scores[list(evidence)], reverse=True)
    ranks = [int(np.sum(others >= value)) + before + 1 for before, value in enumerate(values)]
    return sum(rank <= k for rank in ranks) / min(len(evidence), k)


def _rank(scores: np.ndarray, chunk: int, evidence: Sequence[int]) -> int:
    """Rank of a chunk from 1, without the other evidence."""
    others = np.delete(scores, evidence)
    return int(np.sum(others >= scores[chunk])) + 1

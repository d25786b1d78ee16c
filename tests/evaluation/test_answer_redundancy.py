"""Redundancy by the scores of models, and rank correlation without a third quantity."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from scipy.stats import rankdata

import steerling_jax as sj
from steerling_jax.evaluation.answer_redundancy import partial_rank_correlation, rank_correlation, ranking_agreement

KEY = jax.random.key(0)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def test_agreement_is_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).normal(size=(5, 4))
    by_size = []
    for size in (1, 2, 3):
        subsets = itertools.combinations(range(4), size)
        by_size.append(np.mean([spearman(scores[:, list(one)].mean(1), scores.mean(1)) for one in subsets]))
    assert ranking_agreement(scores, KEY, draws=4000) == pytest.approx(np.mean(by_size), abs=0.02)


def test_samples_that_say_the_same_are_redundant():
    rng = np.random.default_rng(1)
    models = np.arange(6.0)[:, None]
    same, noisy = np.tile(models, 10), models + rng.normal(scale=6, size=(6, 10))
    assert ranking_agreement(same, KEY) == pytest.approx(1.0)
    assert ranking_agreement(noisy, KEY) < 0.9
    assert np.isnan(ranking_agreement(np.ones((6, 10)), KEY))
    with pytest.raises(sj.UserError, match="at least 3"):
        ranking_agreement(same[:2], KEY)
    with pytest.raises(sj.UserError, match="at least 2"):
        ranking_agreement(same[:, :1], KEY)


def test_partial_correlation_follows_its_formula():
    rng = np.random.default_rng(2)
    z = rng.normal(size=40)
    x, y = z + rng.normal(size=40), z + rng.normal(size=40)
    r = {"xy": spearman(x, y), "xz": spearman(x, z), "yz": spearman(y, z)}
    expected = (r["xy"] - r["xz"] * r["yz"]) / np.sqrt((1 - r["xz"] ** 2) * (1 - r["yz"] ** 2))
    assert partial_rank_correlation(x, y, z) == pytest.approx(expected)
    assert rank_correlation(x, y) == pytest.approx(r["xy"])
    assert np.isnan(partial_rank_correlation(x, rankdata(z), z))  # the given quantity explains the other entirely

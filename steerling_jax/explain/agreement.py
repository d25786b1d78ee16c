"""Agreement of predicted with observed effects of concepts, and the control of shuffled predictions.

Legend: p pairs of a committed token and a concept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from steerling_jax.explain.effects import ConceptEffects


class EffectAgreement(NamedTuple):
    """Agreement of predicted with observed values.

    correlation: Pearson's. sign: share of equal signs. slope: of the regression of observed on predicted values. pairs:
    number of finite pairs. Correlation and slope are NaN if either side does not vary.
    """

    correlation: float
    sign: float
    slope: float
    pairs: int


def agreement(predicted: np.ndarray, observed: np.ndarray) -> EffectAgreement:
    """The agreement of predicted (p,) with observed (p,), over the pairs in which both are finite.

    Signs are compared where neither value is 0.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    signed = (x != 0) & (y != 0)
    sign = float(np.mean(np.sign(x[signed]) == np.sign(y[signed]))) if signed.any() else float("nan")
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return EffectAgreement(float("nan"), sign, float("nan"), len(x))
    line: Any = stats.linregress(x, y)  # SciPy's types do not name the fields of the result
    return EffectAgreement(float(line.rvalue), sign, float(line.slope), len(x))


def shuffled_concepts(effects: ConceptEffects, key: jax.Array) -> np.ndarray:
    """Direct contributions (p,) with each token's values reassigned to other concepts of the same token.

    A control: each token keeps the same values, so how much there is to explain at a token stays, and only the
    assignment to concepts is lost. NaN where a token has only one concept.
    """
    # A random permutation could leave a value at its own concept, and a control with some of the true pairs would
    # agree too well. Instead the concepts of each token are put in random order and each value moves to the next one,
    # cyclically: uniform over cyclic permutations, which have no fixed point when there is more than one concept.
    noise = np.asarray(jax.random.uniform(key, effects.orders.shape))
    drawn = np.lexsort((noise, effects.orders))  # pairs sorted by token, in random order within a token
    _, first, count = np.unique(effects.orders[drawn], return_index=True, return_counts=True)
    first, count = np.repeat(first, count), np.repeat(count, count)
    following = first + (np.arange(len(drawn)) - first + 1) % count
    shuffled = np.empty_like(effects.direct)
    shuffled[drawn[following]] = np.where(count > 1, effects.direct[drawn], np.nan)
    return shuffled

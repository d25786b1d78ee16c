"""Figures of faithfulness on cases with a known answer: areas of linear and other functions, ranks, bootstrap."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.attribution.faithfulness.figures import (
    HEADER,
    markdown_table,
    mean_figure,
    ratio_figure,
    text_table,
)
from steerling_jax.attribution.faithfulness.inputs.perturbation_curves import (
    comprehensiveness,
    limits,
    shapley,
    subsets,
    sufficiency,
)
from steerling_jax.attribution.faithfulness.inputs.weight_randomisation import rank_correlation, shuffled_weights
from steerling_jax.bundle import check_weights
from steerling_jax.errors import UserError
from steerling_jax.evaluation.intervals import bootstrap

F = 4
WEIGHTS = np.array([3.0, -1.0, 0.5, 2.0])
LINEAR = subsets(F) @ WEIGHTS
ANY = np.random.default_rng(0).normal(size=2**F)


def test_subsets_are_bits():
    present = subsets(3)
    assert present.shape == (8, 3)
    assert present[5].tolist() == [True, False, True]


def test_areas_of_a_linear_model():
    """Removing features in order decreases the value by the running sums of their weights."""
    best = np.argsort(-WEIGHTS)
    assert comprehensiveness(LINEAR, best) == pytest.approx(np.cumsum(WEIGHTS[best])[:-1].mean())
    assert sufficiency(LINEAR, best) == pytest.approx(np.cumsum(WEIGHTS[best[::-1]])[:-1].mean())
    ends = limits(LINEAR)
    assert comprehensiveness(LINEAR, best) == pytest.approx(ends.high)
    assert sufficiency(LINEAR, best) == pytest.approx(ends.low)
    assert ends.mean == pytest.approx(WEIGHTS.sum() / 2)  # k of F features are k / F of the sum


def test_limits_are_those_of_all_orders():
    areas = [comprehensiveness(ANY, np.array(order)) for order in itertools.permutations(range(F))]
    ends = limits(ANY)
    assert (ends.low, ends.high) == pytest.approx((min(areas), max(areas)))
    assert ends.mean == pytest.approx(np.mean(areas))


def test_shapley_values_by_all_orders():
    expected = np.zeros(F)
    for order in itertools.permutations(range(F)):
        subset = 0
        for feature in order:
            expected[feature] += (ANY[subset | 1 << feature] - ANY[subset]) / math.factorial(F)
            subset |= 1 << feature
    np.testing.assert_allclose(shapley(ANY), expected, atol=1e-12)
    np.testing.assert_allclose(shapley(LINEAR), WEIGHTS, atol=1e-12)


def test_rank_correlation():
    a = np.array([0.1, 5.0, 2.0, -3.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a[:2], a[:2]))


def test_bootstrap_of_a_mean_and_of_no_values():
    values = np.arange(100.0)
    found = bootstrap(lambda rows: float(values[rows].mean()), 100, jax.random.key(0))
    assert found.mean == pytest.approx(49.5)
    deviation = values.std() / 10
    assert found.low == pytest.approx(49.5 - 1.96 * deviation, abs=1.0)
    assert found.high == pytest.approx(49.5 + 1.96 * deviation, abs=1.0)
    assert math.isnan(bootstrap(lambda rows: 0.0, 0, jax.random.key(0)).mean)


def test_figures_and_their_table():
    key = jax.random.key(0)
    figures = [
        mean_figure("a", "x", [1.0, 3.0, math.nan], key, "higher"),
        ratio_figure("b", "y", np.array([1.0, 2.0]), np.array([4.0, 4.0]), key),
        mean_figure("c", "z", [], key),
    ]
    assert [f["mean"] for f in figures] == [pytest.approx(2.0), pytest.approx(3 / 8), None]
    assert [f["n"] for f in figures] == [2, 2, 0]
    rows = text_table({"figures": figures})
    assert rows[0] == HEADER
    assert rows[1][:3] == ["a", "x", "2.000"]
    assert rows[3][2:4] == ["–", ""]
    assert len(markdown_table({"figures": figures})) == 5


def test_shuffled_weights_permute_each_matrix():
    params = {
        "tok_emb": {"weight": jnp.arange(6.0).reshape(3, 2)},
        "blocks": {"mlp": {"weight": jnp.arange(24.0).reshape(3, 4, 2)}, "ln_1": {"weight": jnp.ones((3, 2))}},
    }
    one = shuffled_weights(params, 2, False, jax.random.key(0))
    old, new = params["blocks"]["mlp"]["weight"], one["blocks"]["mlp"]["weight"]
    np.testing.assert_array_equal(new[:2], old[:2])
    assert sorted(np.ravel(new[2])) == sorted(np.ravel(old[2]))
    assert (new[2] != old[2]).any()
    np.testing.assert_array_equal(one["tok_emb"]["weight"], params["tok_emb"]["weight"])
    every = shuffled_weights(params, 0, True, jax.random.key(0))
    assert (every["tok_emb"]["weight"] != params["tok_emb"]["weight"]).any()


def test_nan_weights_are_rejected_by_name():
    with pytest.raises(UserError, match="broken: blocks/w contains NaN"):
        check_weights({"blocks": {"w": jnp.array([1.0, jnp.nan])}}, "broken")

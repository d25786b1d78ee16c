"""Rules of features, their scores and the controls, on tables whose answer is known."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.sparse import csr_array

from steerling_jax.errors import UserError
from steerling_jax.evaluation.binary_scores import binary_scores, f1_score
from steerling_jax.evaluation.feature_rules import best_layer, best_rule, firing_differences, random_rule
from steerling_jax.evaluation.text_probes import difference_of_means, logistic_probe

POSITIVE = np.array([True, True, True, True, False, False, False, False])
# Latents of two layers. In the first, feature 0 fires in 3 of 4 positive texts and in no negative one, feature 1 in 2
# and 1, feature 2 everywhere; in the second, feature 3 fires in the positive text that the others leave out.
FIRST = np.array([[5, 1, 1], [2, 0, 1], [3, 2, 1], [0, 0, 1], [0, 0, 1], [0, 4, 1], [0, 0, 1], [0, 0, 1]], float)
SECOND = np.zeros((8, 4))
SECOND[3, 3] = 1
SECOND[:2, 1] = SECOND[4, 1] = 1
LAYERS = [csr_array(FIRST), csr_array(SECOND)]


def test_differences_and_the_layer_with_the_largest():
    first, second = firing_differences(LAYERS, POSITIVE)
    np.testing.assert_allclose(first, [0.75, 0.25, 0.0])
    np.testing.assert_allclose(second, [0.0, 0.25, 0.0, 0.25])
    assert best_layer([first, second]) == 0
    assert best_layer([second, first]) == 1
    for labels, words in ((POSITIVE | True, "All texts are positive"), (POSITIVE & False, "All texts are negative")):
        with pytest.raises(UserError, match=words):
            firing_differences(LAYERS, labels)


def test_a_rule_is_positive_where_any_of_its_features_fires():
    differences = firing_differences(LAYERS, POSITIVE)
    rule = best_rule(differences, 2, [0])
    assert rule.features.tolist() == [0, 1]
    np.testing.assert_array_equal(rule.counts(LAYERS), [2, 1, 2, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(rule.first(1).counts(LAYERS), [1, 1, 1, 0, 0, 0, 0, 0])
    both = best_rule(differences, 4, [0, 1])
    assert list(zip(both.layers.tolist(), both.features.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 3)]
    np.testing.assert_array_equal(both.counts(LAYERS), [3, 2, 2, 1, 1, 1, 0, 0])
    assert best_rule(differences, 99, [0]).features.tolist() == [0, 1, 2]


def test_random_rules_have_features_that_fire():
    firing = {int(one) for seed in range(20) for one in random_rule(LAYERS, 1, 1, jax.random.key(seed)).features}
    assert firing == {1, 3}
    assert len(random_rule(LAYERS, 1, 5, jax.random.key(0)).features) == 2


def test_scores_with_intervals():
    predicted = np.array([True, True, False, False, True, False, False, False])
    scores = np.where(predicted, 2.0, 0.0)
    result = binary_scores(scores, POSITIVE, jax.random.key(0), draws=200)
    np.testing.assert_allclose(result.precision.mean, 2 / 3)
    np.testing.assert_allclose(result.recall.mean, 1 / 2)
    np.testing.assert_allclose(result.f1.mean, 4 / 7)
    np.testing.assert_allclose(result.auc.mean, (2 * 3 + 2 * 3 * 0.5 + 2 * 0.5) / 16)
    for one in result:
        assert one.low <= one.mean <= one.high
        assert one.low < one.high
    assert f1_score(predicted & False, POSITIVE) == 0.0
    assert np.isnan(f1_score(predicted, POSITIVE & False))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_probes_find_the_direction_that_tells_texts_apart(sparse: bool):
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.4
    rows = rng.exponential(1.0, (400, 30)) * (rng.random((400, 30)) < 0.3)
    rows[:, 7] += 4.0 * positive  # what decides
    rows[:, 8] *= 1000.0  # a column of large values, which says nothing
    train, test = np.arange(400) < 200, np.arange(400) >= 200
    table = csr_array(rows) if sparse else rows
    scores = logistic_probe(table[train], positive[train])(table[test])
    assert np.mean((scores > 0) == positive[test]) > 0.95
    if not sparse:
        means = difference_of_means(rows[train], positive[train])(rows[test])
        # Without a scale of its own, the large column decides: the probe is the better control.
        assert np.mean((means > 0) == positive[test]) < 0.8
        plain = difference_of_means(np.delete(rows, 8, axis=1)[train], positive[train])
        assert np.mean((plain(np.delete(rows, 8, axis=1)[test]) > 0) == positive[test]) > 0.9
    with pytest.raises(UserError, match="All texts are negative"):
        logistic_probe(table, positive & False)


def test_the_weight_decay_is_chosen_by_cross_validation():
    """With few texts and many columns of noise, the strongest decay is the best of these."""
    rng = np.random.default_rng(3)
    positive = np.arange(60) % 2 == 0
    rows = rng.normal(size=(60, 200))
    rows[:, :20] += 0.5 * positive[:, None]
    other = rng.normal(size=(2000, 200))
    kinds = np.arange(2000) % 2 == 0
    other[:, :20] += 0.5 * kinds[:, None]

    def accuracy(decays: tuple[float, ...]) -> float:
        return float(np.mean((logistic_probe(rows, positive, decays)(other) > 0) == kinds))

    single = {decay: accuracy((decay,)) for decay in (1e-4, 1.0)}
    assert accuracy((1e-4, 1.0)) in single.values()
    assert accuracy((1e-4, 1.0)) >= max(single.values()) - 1e-9

"""Texts classified by features without training, beside controls that are fitted to the same texts.

Source: Qwen-Scope (2026), whose report has no control.

Legend: N texts, L layers, D width, S latents, V words, K features of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_array

from steerling_jax.evaluation.binary_scores import BinaryScores, auc_score, binary_scores, f1_score, point_scores
from steerling_jax.evaluation.feature_rules import FeatureRule, best_layer, best_rule, firing_differences, random_rule
from steerling_jax.evaluation.intervals import over_draws
from steerling_jax.evaluation.text_probes import difference_of_means, logistic_probe
from steerling_jax.evaluation.words import count_table, vocabulary, words_of
from steerling_jax.explain.text_features import LayerFeatures
from steerling_jax.progress import Progress, no_progress

COUNTS = (1, 2, 5, 10)  # K
RANDOM_RULES = 20


class ReadTexts(NamedTuple):
    """Texts with what was read in them: their strings, the features of each layer, and labels (N,) bool."""

    texts: Sequence[str]
    layers: Sequence[LayerFeatures]
    positive: np.ndarray

    def select(self, chosen: np.ndarray) -> ReadTexts:
        """Those of some of the texts, given by number."""
        return ReadTexts(
            [self.texts[int(i)] for i in chosen],
            [one.select(chosen) for one in self.layers],
            self.positive[chosen],
        )

    @property
    def firings(self) -> list[csr_array]:
        """The strongest latents of each layer, (N, S), above 0 where a feature fires."""
        return [one.strongest for one in self.layers]


class Method(NamedTuple):
    """A method's figures. name: as reports show it. features: K; None for methods without features of their own.

    train: the number of texts that it was fitted to. scores: with intervals over the texts, of random features over the
    random choices.
    """

    name: str
    features: int | None
    train: int
    scores: BinaryScores


def find_rule(train: ReadTexts, count: int, *, combined: bool = False) -> FeatureRule:
    """The rule of `count` features of the layer with the largest Δ, or with `combined` of all layers."""
    differences = firing_differences(train.firings, train.positive)
    layers = range(len(differences)) if combined else [best_layer(differences)]
    return best_rule(differences, count, list(layers))


def evaluate_methods(
    train: ReadTexts, test: ReadTexts, key: jax.Array, progress: Progress = no_progress, draws: int = 1000
) -> list[Method]:
    """The figures of each method on the texts `test`, fitted to the texts `train`.

    Rules of the best layer and of all layers; rules found on a tenth of the texts; random features of the same layer
    (means over 20 draws); difference of means and logistic regression on the mean hidden row of that layer; logistic
    regression on the strongest latents of that layer, and on word counts. Raises `UserError` for texts of one class.
    """
    differences = firing_differences(train.firings, train.positive)
    layer = best_layer(differences)
    methods = []

    def add(name: str, scores: np.ndarray, count: int | None = None, texts: int = len(train.positive)) -> None:
        methods.append(Method(name, count, texts, binary_scores(scores, test.positive, key, draws)))
        progress("scoring methods", len(methods), 4 * len(COUNTS) + 4)

    alone, together = best_rule(differences, max(COUNTS), [layer]), best_rule(differences, max(COUNTS),
                                                                              range(len(differences)))  # fmt: skip
    tenth = train.select(tenth_of(train.positive))
    small = find_rule(tenth, max(COUNTS))
    for name, rule, texts in (
        ("best layer", alone, len(train.positive)),
        ("all layers", together, len(train.positive)),
        ("a tenth of the texts", small, len(tenth.positive)),
    ):
        for count in COUNTS:
            add(name, rule.first(count).counts(test.firings), count, texts)
    for count in COUNTS:
        scores = _random_scores(train, test, layer, count, jax.random.fold_in(key, count))
        methods.append(Method("random features", count, len(train.positive), scores))
    rows, other = train.layers[layer].mean, test.layers[layer].mean
    add("difference of means", difference_of_means(rows, train.positive)(other))
    add("logistic, hidden rows", logistic_probe(rows, train.positive)(other))
    add("logistic, features", logistic_probe(train.firings[layer], train.positive)(test.firings[layer]))
    words = [words_of(text) for text in train.texts]
    columns = vocabulary(words, least=2)
    bags = [_log_counts(count_table(one, columns)) for one in (words, [words_of(text) for text in test.texts])]
    add("logistic, words", logistic_probe(bags[0], train.positive)(bags[1]))
    return methods


def transfer(train: Sequence[ReadTexts], test: Sequence[ReadTexts], count: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 and AUC (G, G) of rules that are found in the texts of the row's group and tested on those of the column's."""
    G = len(train)
    f1, area = np.full((G, G), np.nan), np.full((G, G), np.nan)
    for i, group in enumerate(train):
        rule = find_rule(group, count)
        for j, other in enumerate(test):
            counts = rule.counts(other.firings)
            f1[i, j] = f1_score(counts > 0, other.positive)
            area[i, j] = auc_score(counts, other.positive)
    return f1, area


def tenth_of(positive: np.ndarray) -> np.ndarray:
    """The numbers of a tenth of the texts of each class, at least one, in order."""
    parts = [np.flatnonzero(kind) for kind in (positive, ~positive)]
    return np.sort(np.concatenate([part[: max(1, round(len(part) / 10))] for part in parts]))


def split_texts(groups: Sequence[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers of the texts to find features on and of those to test on, each in order.

    groups (N,): of each text; every group is split alike, with at least one text in each part where it has two.
    """
    rng = np.random.default_rng(seed)
    train: list[int] = []
    names = np.asarray(groups)
    for name in sorted(set(groups)):
        order = rng.permutation(np.flatnonzero(names == name))
        count = min(max(1, round(share * len(order))), max(1, len(order) - 1))
        train += order[:count].tolist()
    chosen = np.zeros(len(names), bool)
    chosen[train] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _random_scores(train: ReadTexts, test: ReadTexts, layer: int, count: int, key: jax.Array) -> BinaryScores:
    """The means over `RANDOM_RULES` rules of random features, and the 2.5 % and 97.5 % percentiles over the rules."""
    rules = [random_rule(train.firings, layer, count, jax.random.fold_in(key, i)) for i in range(RANDOM_RULES)]
    points = np.array([point_scores(rule.counts(test.firings), test.positive) for rule in rules])
    figures = [column[~np.isnan(column)] for column in points.T]
    return BinaryScores(*(over_draws(values, len(values)) for values in figures))


def _log_counts(table: csr_array) -> csr_array:
    return csr_array((np.log1p(table.data), table.indices, table.indptr), shape=table.shape)

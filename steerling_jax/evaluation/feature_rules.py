"""Classification without training: a text is positive if any of K features fires, chosen by how much more often each
fires in positive texts.

    Δ_f = P(f fires | positive) − P(f fires | negative)

Source: Qwen-Scope (2026), whose report gives no baseline; `text_probes` has some.

Legend: N texts, L layers, S features of a layer, K features of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from scipy.sparse import csr_array

from steerling_jax.errors import require
from steerling_jax.evaluation.sparse_tables import sample_counts, table_shape

Firings = Sequence[csr_array]  # of each layer, (N, S): above 0 where a feature fires at any token of a text


@dataclass(frozen=True)
class FeatureRule:
    """The features of a rule, the largest difference first.

    layers: the place of each feature's layer in the list of layers, (K,). features: its number there, (K,).
    differences: Δ_f, (K,).
    """

    layers: np.ndarray
    features: np.ndarray
    differences: np.ndarray

    def counts(self, firings: Firings) -> np.ndarray:
        """How many of the features fire in each text, (N,) int64. The text is positive if the count is above 0."""
        total = np.zeros(table_shape(firings[0])[0], np.int64)
        for layer in np.unique(self.layers):
            columns = self.features[self.layers == layer]
            total += np.asarray((firings[layer][:, columns] > 0).sum(axis=1)).astype(np.int64)
        return total

    def first(self, count: int) -> FeatureRule:
        """The rule with the first `count` features."""
        return FeatureRule(self.layers[:count], self.features[:count], self.differences[:count])


def check_labels(positive: np.ndarray) -> None:
    """Raises `UserError` unless there are texts of both classes."""
    positives = int(np.sum(positive))
    require(positives > 0, "All texts are negative; a classifier needs texts of both classes.", "labels")
    require(positives < len(positive), "All texts are positive; a classifier needs texts of both classes.", "labels")


def firing_shares(firings: csr_array) -> np.ndarray:
    """The share (S,) float64 of the texts in which each feature fires; firings (N, S) are above 0 where it does."""
    return sample_counts(firings) / table_shape(firings)[0]


def firing_differences(firings: Firings, positive: np.ndarray) -> list[np.ndarray]:
    """Δ of every feature of each layer, (S,) float64, from the labels positive (N,) bool. Raises `UserError` for texts
    of one class only."""
    check_labels(positive)
    return [firing_shares(one[positive]) - firing_shares(one[~positive]) for one in firings]


def best_rule(differences: Sequence[np.ndarray], count: int, layers: Sequence[int]) -> FeatureRule:
    """The `count` features with the largest Δ among `layers`; among equals the lower layer and number first."""
    layer = np.concatenate([np.full(len(differences[one]), one, np.int64) for one in layers])
    feature = np.concatenate([np.arange(len(differences[one]), dtype=np.int64) for one in layers])
    value = np.concatenate([differences[one] for one in layers])
    order = np.argsort(-value, kind="stable")[:count]
    return FeatureRule(layer[order], feature[order], value[order])


def best_layer(differences: Sequence[np.ndarray]) -> int:
    """The place of the layer with the single largest Δ."""
    return int(np.argmax([one.max() for one in differences]))


def random_rule(firings: Firings, layer: int, count: int, key: jax.Array) -> FeatureRule:
    """`count` random features of a layer that fire in at least one text: the control for the choice by Δ."""
    firing = np.unique(firings[layer].indices[firings[layer].data > 0])
    order = np.asarray(jax.random.permutation(key, len(firing)))[:count]
    return FeatureRule(np.full(len(order), layer, np.int64), firing[order].astype(np.int64), np.zeros(len(order)))

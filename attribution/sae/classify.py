"""Each class of labelled texts against the others: all methods, and the transfer of features between groups.

Legend: G groups, N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.sae.labelled_texts import LabelledTexts
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.evaluation.binary_scores import BinaryScores, binary_scores
from steerling_jax.evaluation.feature_rules import FeatureRule
from steerling_jax.explain.text_classification import Method, ReadTexts, evaluate_methods, find_rule, transfer
from steerling_jax.explain.text_features import LayerFeatures
from steerling_jax.progress import Progress


@dataclass(frozen=True)
class ClassFigures:
    """A class against the others.

    layer: the block with the largest Δ. rule: its best features, as a saved classifier has them, and saved: their
    figures. transfer: F1 and AUC (G, G) of rules of one group on another; None without groups.
    """

    label: str
    layer: int | None
    rule: FeatureRule
    saved: BinaryScores
    methods: list[Method]
    transfer: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Classification:
    """The figures of each class, and the names of the groups."""

    classes: list[ClassFigures]
    groups: list[str]


def classify(
    layers: Sequence[LayerFeatures],
    autoencoders: Sequence[Autoencoder],
    labelled: LabelledTexts,
    *,
    count: int,
    seed: int,
    progress: Progress,
) -> Classification:
    """Evaluates every method for each positive class.

    layers: what each autoencoder read in the texts. count: K of rules that are saved.
    """
    groups = sorted(set(labelled.groups.tolist()))
    classes = []
    for number, label in enumerate(labelled.positive):
        texts = ReadTexts(labelled.texts, layers, labelled.labels == label)
        train, test = texts.select(labelled.train), texts.select(labelled.test)
        key = jax.random.fold_in(jax.random.key(seed), number)
        methods = evaluate_methods(train, test, key, _named(progress, label))
        rule = find_rule(train, count)
        saved = binary_scores(rule.counts(test.firings), test.positive, key)
        between = None
        if len(groups) > 1:
            parts = [[texts.select(part[labelled.groups[part] == group]) for group in groups]
                     for part in (labelled.train, labelled.test)]  # fmt: skip
            between = transfer(parts[0], parts[1], count)
        classes.append(ClassFigures(label, autoencoders[int(rule.layers[0])].layer, rule, saved, methods, between))
    return Classification(classes, groups if len(groups) > 1 else [])


def as_json(result: Classification, autoencoders: Sequence[Autoencoder]) -> dict[str, Any]:
    """The figures for JSON."""
    return {
        "autoencoders": [one.summary() for one in autoencoders],
        "classes": [
            {
                "label": one.label,
                "layer": one.layer,
                "features": [
                    {"feature": feature, "difference": difference}
                    for feature, difference in zip(one.rule.features, one.rule.differences, strict=True)
                ],
                "methods": [
                    {"name": m.name, "count": m.features, "train": m.train}
                    | {field: estimate._asdict() for field, estimate in m.scores._asdict().items()}
                    for m in one.methods
                ],
                "transfer": None if one.transfer is None else {"f1": one.transfer[0], "auc": one.transfer[1]},
            }
            for one in result.classes
        ],
        "groups": result.groups,
    }


def _named(progress: Progress, label: str) -> Progress:
    """The same progress, with the class in the name of each stage."""
    return lambda stage, done, total: progress(f"{stage}: {label}", done, total)

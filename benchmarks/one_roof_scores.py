"""How well concepts, features and directions detect labels, how well words predict where they are active, and which
steering does the most at a limited damage.

For a label, the best of many features is chosen on chunks of the training split and measured on held-out chunks.

Legend: m chunks, C labels, J columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from steerling_jax.evaluation.detection import auc, auc_table, macro_auc
from steerling_jax.evaluation.feature_rules import firing_differences
from steerling_jax.evaluation.logistic import Logistic, fit_logistic
from steerling_jax.evaluation.text_probes import scaling
from steerling_jax.explain.naming.selection import choose_words, score_names
from steerling_jax.explain.naming.units import name_units

POSITIVES = 20  # held-out chunks with a label, for it to count
RANDOM = 2048  # directions: as many as a block has features
THRESHOLD = 0.8  # of the AUC of a name
DECAYS = (1e-3, 1e-2)
LIMIT = 0.3  # nats a token of damage
NAMED = 512  # of the concepts or features of a kind, evenly spaced


@dataclass(frozen=True)
class Reading:
    """chunks (m,): their numbers. positive (m, C) bool: their labels. means: by name, (m, columns) float32.

    Names: "known", "discovered", "features 3" and "block 3" (of block 3, counted from 0), "norm" (a column a block).
    """

    chunks: np.ndarray
    positive: np.ndarray
    means: dict[str, np.ndarray]


class Chosen(NamedTuple):
    """The best of several for each label: its number and AUC on held-out chunks, (C,) each."""

    best: np.ndarray
    areas: np.ndarray


def measurable(train: Reading, held: Reading) -> np.ndarray:
    """The labels with enough held-out chunks, and with one in the training chunks that were read."""
    return np.flatnonzero((held.positive.sum(axis=0) >= POSITIVES) & (train.positive.sum(axis=0) > 0))


def choose_best(
    train: tuple[np.ndarray, np.ndarray], held: tuple[np.ndarray, np.ndarray], quality: np.ndarray | None = None
) -> Chosen:
    """The best columns by their AUC on the training chunks.

    train, held: scores (m, J) and labels (m, C). quality (C, J): by which to choose in place of the AUC.
    """
    quality = auc_table(*train) if quality is None else quality
    best = quality.argmax(axis=1)
    return Chosen(best, np.array([auc(held[0][:, j], held[1][:, c]) for c, j in enumerate(best)]))


def differences_of_means(rows: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The mean of rows (m, D) with each label minus that of the others, (C, D)."""
    with_label = positive.astype(float)
    inside = with_label.T @ rows / np.maximum(with_label.sum(axis=0), 1)[:, None]
    outside = (1 - with_label).T @ rows / np.maximum((1 - with_label).sum(axis=0), 1)[:, None]
    return inside - outside


def word_table(tokens: np.ndarray, vocab_size: int) -> csr_array:
    """log(1 + count) of each token in chunks tokens (m, L), padded with −1: (m, vocab_size)."""
    row, column = np.nonzero(tokens >= 0)
    counts = csr_array((np.ones(len(row)), (row, tokens[row, column])), shape=(len(tokens), vocab_size))
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    return counts


def probe_areas(train: tuple[Any, np.ndarray], held: tuple[Any, np.ndarray]) -> np.ndarray:
    """The AUC (C,) of logistic regression, fitted on the training chunks, on the held-out ones.

    train, held: columns (m, J), dense or sparse, and labels (m, C). The weight decay is the one with the largest mean
    AUC on a random quarter of the training chunks after a fit to the others.
    """
    (columns, positive), used = train, np.ones(train[1].shape, bool)
    inside = np.random.default_rng(0).random(len(positive)) < 0.75

    def fit(where: np.ndarray, decay: float) -> Logistic:
        return fit_logistic(columns[where], positive[where], used[where], decay)

    def quality(decay: float) -> float:
        return macro_auc(fit(inside, decay).scores(columns[~inside]), positive[~inside], 1).macro or 0.0

    found = fit(np.ones(len(positive), bool), max(DECAYS, key=quality)).scores(held[0])
    return np.array([auc(one, label) for one, label in zip(found.T, held[1].T, strict=True)])


def detection(
    train: Reading, held: Reading, words: tuple[csr_array, csr_array] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The held-out AUC of each scorer for each measurable label, and the number of what was chosen for it.

    words: the tables of words of both; with them, probes of the rows and of the words are fitted, too.
    """
    labels = measurable(train, held)
    of_train, of_held = train.positive[:, labels], held.positive[:, labels]
    last = max(int(name.split()[1]) for name in train.means if name.startswith("block"))
    features = [name for name in train.means if name.startswith("features")]

    def best_of(name: str, quality: np.ndarray | None = None) -> Chosen:
        return choose_best((train.means[name], of_train), (held.means[name], of_held), quality)

    areas: dict[str, np.ndarray] = {}
    chosen: dict[str, np.ndarray] = {}
    if "known" in held.means:
        areas["known concept"] = np.array([auc(held.means["known"][:, c], held.positive[:, c]) for c in labels])
        chosen["discovered"], areas["best discovered concept"] = best_of("discovered")
    if features:
        every = {name: best_of(name) for name in features}
        chosen |= {name: one.best for name, one in every.items()}
        areas["best feature of the last block"] = every[f"features {last}"].areas
        if len(features) > 1:
            # The block, too, is chosen on the training chunks.
            tables = [auc_table(train.means[name], of_train).max(axis=1) for name in features]
            block = np.stack(tables).argmax(axis=0)
            areas["best feature of all blocks"] = np.stack([one.areas for one in every.values()])[
                block, np.arange(len(labels))
            ]
        firings = csr_array(train.means[f"features {last}"])
        contrast = np.stack([firing_differences([firings], of_train[:, c])[0] for c in range(len(labels))])
        areas["feature with the largest difference of firing"] = best_of(f"features {last}", contrast).areas
    rows = train.means[f"block {last}"], held.means[f"block {last}"]
    random = np.random.default_rng(seed).standard_normal((rows[0].shape[1], RANDOM))
    areas["best random direction"] = choose_best((rows[0] @ random, of_train), (rows[1] @ random, of_held)).areas
    means = differences_of_means(rows[0], of_train)
    areas["difference of means"] = np.array([auc(rows[1] @ d, of_held[:, c]) for c, d in enumerate(means)])
    if words is not None:
        scale = scaling(rows[0])
        areas["logistic regression, last block"] = probe_areas((scale(rows[0]), of_train), (scale(rows[1]), of_held))
        areas["logistic regression, words"] = probe_areas((words[0], of_train), (words[1], of_held))
    return {
        "labels": labels.tolist(),
        "positives": {"train": of_train.sum(axis=0).tolist(), "held out": of_held.sum(axis=0).tolist()},
        "chunks": {"train": len(of_train), "held out": len(of_held)},
        "areas": {name: values.tolist() for name, values in areas.items()},
        "chosen": {name: values.tolist() for name, values in chosen.items()},
    }


def names(
    texts: tuple[Sequence[str], Sequence[str]], train: Reading, held: Reading, given: Sequence[str]
) -> dict[str, Any]:
    """The AUC with which words predict where concepts and features are active, chosen on the training chunks and
    scored on the held-out ones; of the known concepts also of the names `given` to them."""
    figures: dict[str, Any] = {}
    kinds = [name for name in ("known", "discovered", *sorted(train.means)) if name.startswith(("known", "discovered",
             "features"))]  # fmt: skip
    for kind in dict.fromkeys(kinds):
        total = train.means[kind].shape[1]
        own = np.linspace(0, total - 1, min(NAMED, total)).astype(int)
        activations = train.means[kind][:, own], held.means[kind][:, own]
        vocabulary, words = choose_words(texts[0], activations[0])
        figures[kind] = _summary(score_names(vocabulary, texts[1], activations[1], words), total)
        if kind == "known":
            units = [vocabulary.find(name_units(given[i])) for i in map(int, own)]
            figures["known, given names"] = _summary(score_names(vocabulary, texts[1], activations[1], units), total)
    return figures


def _summary(qualities: Sequence[Any], total: int) -> dict[str, Any]:
    scored = [one for one in qualities if one is not None]
    good = sum(one.auc >= max(THRESHOLD, one.others or 0.0) for one in scored)
    return {
        "of": total,
        "read": len(qualities),
        "good": good,
        "areas": [one.auc for one in scored],
        "others": [one.others for one in scored],
    }


def mean_of(groups: Sequence[Sequence[float]]) -> float:
    """The mean over labels of the mean over texts; a text without a value is left out."""
    return float(np.nanmean([np.nanmean(group) for group in groups if len(group)]))


def choose_dose(tuning: Sequence[Mapping[str, Any]]) -> int:
    """The one that is found most often among those within the limit of damage, the least damage where none is within;
    among equals the one with less damage."""
    damage = [mean_of(one["damage"]) for one in tuning]
    within = [i for i, value in enumerate(damage) if value <= LIMIT] or [int(np.argmin(damage))]
    return max(within, key=lambda i: (mean_of(tuning[i]["found"]), -damage[i]))

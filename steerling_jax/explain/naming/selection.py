"""Names of concepts: chosen on one half of some texts, scored on the other, beside the names of other concepts.

Everything here works on arrays: the activations of J concepts (or features of a sparse autoencoder) in texts, and the
texts. A concept is *active* in the texts with the largest activations. A name is one to three units (`naming.units`);
its score of a text is the sum of their BM25 weights. The quality of a name is the area under the ROC curve (AUC) with
which this score separates the texts in which the concept is active from the others: the probability that of two such
texts the active one contains the name's words more strongly. So a name with an AUC of 0.9 says well *where* the concept
is active. It does not say what the concept does to a text, and a concept that depends on meaning, position or grammar
rather than on words has no good name of this kind.

Legend: J concepts, m texts, W units, n candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from steerling_jax.concepts.concept import NameQuality
from steerling_jax.evaluation.detection import auc_table
from steerling_jax.explain.naming.units import Vocabulary, text_units
from steerling_jax.progress import Progress, no_progress

ACTIVE_SHARE = 0.05  # of the texts, those with the largest activations
MIN_ACTIVE = 5  # texts, for a name to be chosen or scored: fewer give only noise
MAX_WORDS = 3
_FREQUENT, _LIFTED, _PROMOTED = 24, 8, 6  # candidates of each kind
_MIN_GAIN = 0.005  # of the AUC on the texts on which a name is chosen, for one more word
_KEPT = 12  # candidates, best first, for the second and third word
_CONCEPTS = 128  # at a time: (128, W) arrays are small


@dataclass(frozen=True)
class ProposedName:
    """The words of a concept's name, spelled as they are in the texts, and its quality; None where the concept is
    active in too few of the texts on which names are scored."""

    words: tuple[str, ...]
    quality: NameQuality | None


def active_texts(activations: np.ndarray) -> np.ndarray:
    """Where concepts are active, (m, J) bool, for activations (m, J): above the 95th percentile and above 0.

    Columns with fewer than `MIN_ACTIVE` active texts are False everywhere.
    """
    limit = np.quantile(activations, 1 - ACTIVE_SHARE, axis=0) if len(activations) else 0.0
    active = activations > np.maximum(limit, 0.0)
    return active & (active.sum(axis=0) >= MIN_ACTIVE)


def choose_words(
    texts: Sequence[str],
    activations: np.ndarray,
    promoted: Sequence[Sequence[str]] | None = None,
    progress: Progress = no_progress,
) -> tuple[Vocabulary, list[list[int]]]:
    """The units of each concept's name, for activations (m, J) in m texts; an empty list where no unit predicts them.

    Candidates are units that are frequent in the texts where the concept is active, those with the highest lift there,
    and those of `promoted`, texts of the tokens that each concept promotes. The best one is taken, and up to two more
    as long as they improve the AUC on these texts.
    """
    vocabulary = Vocabulary.of(texts)
    weights, active = vocabulary.weights(texts), active_texts(activations)
    names: list[list[int]] = []
    for first in range(0, activations.shape[1], _CONCEPTS):
        batch = active[:, first : first + _CONCEPTS]
        frequent, lifted = _candidates(weights, batch)
        for j in range(batch.shape[1]):
            extra = [] if promoted is None else _promoted_units(vocabulary, promoted[first + j])
            candidates = np.unique([*frequent[j], *lifted[j], *extra]).astype(int)
            names.append(_grow(weights, batch[:, j], candidates) if batch[:, j].any() else [])
            progress("names", len(names), activations.shape[1])
    return vocabulary, names


def score_names(
    vocabulary: Vocabulary, texts: Sequence[str], activations: np.ndarray, names: Sequence[Sequence[int]]
) -> list[NameQuality | None]:
    """The quality of each concept's name, units of `vocabulary`, on texts on which it was not chosen.

    activations (m, J): of the concepts in these texts. None for an empty name and for a concept that is active in too
    few of them. The control is the mean AUC of the names of the other concepts for the same concept.
    """
    weights, active = vocabulary.weights(texts), active_texts(activations)
    scores = np.stack([_score(weights, units) for units in names], axis=1) if names else np.zeros((len(texts), 0))
    areas = auc_table(scores, active)
    keys = [frozenset(units) for units in names]
    qualities: list[NameQuality | None] = []
    for j, units in enumerate(names):
        count = int(active[:, j].sum())
        if not units or not count:
            qualities.append(None)
            continue
        # A name with the same words is the same name and would be no control.
        others = [areas[j, i] for i, key in enumerate(keys) if key and key != keys[j]]
        area = float(areas[j, j])
        qualities.append(
            NameQuality(
                area,
                _standard_error(area, count, len(texts) - count),
                float(np.mean(others)) if others else None,
                count,
                len(texts),
            )
        )
    return qualities


def propose_names(
    chosen_on: tuple[Sequence[str], np.ndarray],
    scored_on: tuple[Sequence[str], np.ndarray],
    promoted: Sequence[Sequence[str]] | None = None,
    progress: Progress = no_progress,
) -> tuple[Vocabulary, list[ProposedName]]:
    """A name for each of J concepts with its quality.

    chosen_on, scored_on: texts with the activations (m, J) of the concepts in them; no text, and no near copy of one,
    should be in both. promoted: of each concept, the tokens that it promotes.
    """
    vocabulary, names = choose_words(*chosen_on, promoted, progress)
    qualities = score_names(vocabulary, *scored_on, names)
    spelled = [tuple(vocabulary.spelled[unit] for unit in units) for units in names]
    return vocabulary, [ProposedName(*one) for one in zip(spelled, qualities, strict=True)]


def _candidates(weights: sparse.csc_array, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each concept the units with the best AUC of their presence alone, and those with the highest lift.

    weights (m, W), active (m, J). A yes-or-no score has the AUC 0.5 + (share of active texts with the unit − share of
    other texts with it) / 2, so one product of matrices finds the best of all units for all concepts.
    """
    present = weights.copy()
    present.data = np.ones_like(present.data)
    positives = active.sum(axis=0)[:, None]
    inside = np.asarray((present.T @ active.astype(float)).T)
    everywhere = np.asarray(present.sum(axis=0)).ravel()[None, :]
    share_inside = inside / np.maximum(positives, 1)
    share_outside = (everywhere - inside) / np.maximum(len(active) - positives, 1)
    lift = share_inside / np.maximum(everywhere / len(active), 1e-9)
    lift[inside < np.maximum(3, 0.2 * positives)] = 0.0  # the lift of units of few texts is noise
    order = [np.argsort(-values, axis=1, kind="stable") for values in (share_inside - share_outside, lift)]
    return order[0][:, :_FREQUENT], order[1][:, :_LIFTED]


def _promoted_units(vocabulary: Vocabulary, tokens: Sequence[str]) -> list[int]:
    return vocabulary.find([unit for token in tokens for unit, _ in text_units(token.strip())])[:_PROMOTED]


def _grow(weights: sparse.csc_array, active: np.ndarray, candidates: np.ndarray) -> list[int]:
    """Greedy selection of at most three of the candidates (n,) by the AUC of their summed weights."""
    columns = weights[:, candidates].toarray()
    total, best, chosen = np.zeros(len(columns)), 0.5, []
    for _ in range(min(MAX_WORDS, len(candidates))):
        areas = auc_table(total[:, None] + columns, active[:, None])[0]
        areas[chosen] = 0.0
        if areas.max() < best + _MIN_GAIN:
            break
        if not chosen:  # words that say little alone rarely help
            drop = np.argsort(-areas, kind="stable")[_KEPT:]
            columns[:, drop] = 0.0
        chosen.append(int(areas.argmax()))
        best, total = float(areas.max()), total + columns[:, chosen[-1]]
    return candidates[chosen].tolist()


def _score(weights: sparse.csc_array, units: Sequence[int]) -> np.ndarray:
    """The score (m,) of a name's units in each text."""
    return np.asarray(weights[:, np.asarray(units, int)].sum(axis=1)).ravel()


def _standard_error(area: float, positives: int, negatives: int) -> float:
    """Of an AUC (Hanley and McNeil, 1982)."""
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (one - area**2) + (negatives - 1) * (two - area**2)
    return float(np.sqrt(max(variance, 0.0) / max(positives * negatives, 1)))

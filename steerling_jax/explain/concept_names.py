"""Automatic names of concepts, from words of their strongest chunks, and scores of these names on held-out chunks.

A concept's name consists of the words with the highest lift: those that occur more often in the training chunks in
which the concept is strongest than in the others. Its score is the area under the ROC curve with which the concept's
activation separates held-out chunks that contain a word of the name from those that do not. The control is the same
area for the names of other concepts. It shows how much of the score any name would reach, for example because a concept
is active in all long chunks.

Legend: J concepts, h held-out chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.bags import Bags
from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.explain.activity import Activity
from steerling_jax.explain.chunk_texts import ChunkTexts
from steerling_jax.progress import Progress, no_progress

NAME_WORDS = 3
MIN_LIFT = 2.0
MIN_STRENGTH = 0.3  # chunks below this fraction of the strongest chunk's activation are not used for the name
MIN_SUPPORT = 0.2  # fraction of the strongest chunks in which a word of the name must occur
MIN_POSITIVES = 5  # held-out chunks that must contain a word of the name for a score
_DRAWS = 200  # bootstrap samples of a score


@dataclass(frozen=True)
class NameScore:
    """How well a concept's activation separates held-out chunks that contain a word of the concept's name.

    auc: area under the ROC curve with its 95 % interval over chunks. others: mean area of this concept's activation for
    the names of `names` other concepts, None if there are none. positives: how many of `chunks` contain a word of the
    name. correlation: of the activation with the number of the name's words in a chunk.
    """

    auc: Estimate
    others: float | None
    names: int
    positives: int
    chunks: int
    correlation: float


def name_words(
    texts: ChunkTexts, activity: Activity, progress: Progress = no_progress
) -> list[list[tuple[str, float]]]:
    """The words of each concept's name with their lift, at most three per concept, highest lift first."""
    strong = [
        row[value > max(0.0, MIN_STRENGTH * value[0])] for row, value in zip(activity.strongest, activity.strength)
    ]
    # Lift compares the strongest chunks of one concept with all others read here: the evenly spaced background and the
    # strongest chunks of the other concepts. The whole training split is not read.
    numbers = np.unique(np.concatenate([activity.background, *strong]))
    vocabulary: dict[str, int] = {}
    ids, rows = [], []
    for row, number in enumerate(numbers.tolist()):
        for word in texts.words(number):
            ids.append(vocabulary.setdefault(word, len(vocabulary)))
            rows.append(row)
        if row % 1000 == 0 or row + 1 == len(numbers):
            progress("words", row + 1, len(numbers))
    bags = Bags.grouped(np.asarray(ids, np.int32), np.asarray(rows, np.int64), len(numbers))
    spelled = list(vocabulary)
    names = []
    for j, chunks in enumerate(strong):
        positive = np.isin(numbers, chunks)[:, None]
        # A floor of 3 chunks: a word of a single chunk has a high lift by chance.
        support = max(3, math.ceil(MIN_SUPPORT * len(chunks)))
        (lifted,) = lifted_tokens(
            bags, positive, max(len(vocabulary), 1), support=support, least=MIN_LIFT, most=NAME_WORDS
        )
        names.append([(spelled[i], float(value)) for i, value in zip(lifted.tokens, lifted.lift)])
        progress("lift", j + 1, len(strong))
    return names


def count_name_words(
    texts: ChunkTexts, numbers: Sequence[int], names: Sequence[Sequence[tuple[str, float]]]
) -> np.ndarray:
    """How many different words of each name occur in each of the chunks `numbers`, (h, J) int."""
    words = [set(texts.words(number)) for number in numbers]
    counts = np.array([[sum(word in chunk for word, _ in name) for name in names] for chunk in words], int)
    return counts.reshape(len(words), len(names))  # keeps J columns where no chunk is held out


def score_name(activation: np.ndarray, name_counts: np.ndarray, own: int, key: jax.Array) -> NameScore | None:
    """Scores a concept's name, or returns None if too few held-out chunks contain a word of it.

    activation (h,): the concept's. name_counts (h, J): the number of words of each concept's name in each chunk; `own`
    is the concept's own column.
    """
    positive = name_counts > 0
    # An area needs positives and negatives, and a few positives give only noise.
    scorable = [c for c in range(positive.shape[1]) if MIN_POSITIVES <= positive[:, c].sum() < len(positive)]
    if own not in scorable:
        return None
    own_positive = positive[:, own]
    # A name that is in exactly the same chunks is the same name in other words and would be no control.
    others = [c for c in scorable if not np.array_equal(positive[:, c], own_positive)]

    def area(rows: np.ndarray) -> float:
        drawn = own_positive[rows]
        return math.nan if drawn.all() or not drawn.any() else auc(activation[rows], drawn)

    areas = [auc(activation, positive[:, c]) for c in others]
    spread = activation.std() * name_counts[:, own].std()
    covariance = np.mean((activation - activation.mean()) * (name_counts[:, own] - name_counts[:, own].mean()))
    return NameScore(
        bootstrap(area, len(positive), key, _DRAWS),
        float(np.mean(areas)) if areas else None,
        len(areas),
        int(own_positive.sum()),
        len(positive),
        float(covariance / spread) if spread else 0.0,
    )

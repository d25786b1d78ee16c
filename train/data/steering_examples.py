"""What steering training adds to a batch: which concept of each chunk may be pushed, and the tokens that express it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.labelled_chunks import chunk_bags
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.data.pipeline import Example

_MOST_CHUNKS = 100_000  # that lifts are counted in
_TOGETHER = 256  # concepts


def lift_table(store: CorpusStore, objective: SteeringObjective) -> np.ndarray:
    """The lifted tokens of every known concept, from the training chunks' labels: (C, W) int32, −1 unused.

    Raises `UserError` where no concept has any.
    """
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + _MOST_CHUNKS)
    bags, labels = chunk_bags(store, first, last), store.read("chunk_labels", first, last)
    C = len(store.concepts)
    table = np.full((C, objective.most_lifted), -1, np.int32)
    for start in range(0, C, _TOGETHER):
        ids = np.arange(start, min(start + _TOGETHER, C))
        positive = np.zeros((len(labels), len(ids)), bool)
        row, place = np.nonzero((labels >= ids[0]) & (labels <= ids[-1]))
        positive[row, labels[row, place] - start] = True
        found = lifted_tokens(
            bags,
            positive,
            store.vocab_size,
            support=objective.support,
            least=objective.least_lift,
            most=objective.most_lifted,
            without=store.special.names(),
        )
        for concept, lifted in zip(ids, found):
            table[concept, : len(lifted.tokens)] = lifted.tokens
    if (table < 0).all():
        raise UserError(
            f"No concept of the corpus {store.folder} has tokens with a lift of {objective.least_lift} in "
            f"{objective.support} chunks: lower objective.least_lift or objective.support, or label more text."
        )
    return table


def with_concepts(batches: Iterable[Example], lifted: np.ndarray, seed: int, first: int) -> Iterator[Example]:
    """Batches from number `first` on, with `concept` (B, S), one of each chunk's labels at random, and `lifted`
    (B, S, W), its row of the table, in place of the labels. A draw depends on the seed, the batch's number and the
    sequence's alone."""
    usable = np.asarray((lifted >= 0).any(axis=1))
    for number, batch in enumerate(batches, start=first):
        labels = batch["chunk_labels"]
        fit = (labels >= 0) & usable[np.maximum(labels, 0)]
        draws = [
            np.random.default_rng((seed, number, int(sequence))).random(fit.shape[1:]) for sequence in batch["sequence"]
        ]
        place = np.argmax(np.where(fit, np.stack(draws), -1.0), axis=2)[..., None]
        concept = np.take_along_axis(np.where(fit, labels, -1), place, axis=2)[..., 0]
        tokens = np.where(concept[..., None] >= 0, lifted[np.maximum(concept, 0)], -1)
        rest = {name: value for name, value in batch.items() if name != "chunk_labels"}
        yield {**rest, "concept": concept.astype(np.int32), "lifted": tokens.astype(np.int32)}

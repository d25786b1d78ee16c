"""Adds to a batch what steering training needs: a concept for each chunk, and the tokens that express the concept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.labelled_chunks import chunk_bags
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.data.pipeline import Example

_MAX_CHUNKS = 100_000  # training chunks in which lifts are counted
_CONCEPTS_AT_ONCE = 256  # bounds the memory of the label matrix


def lift_table(store: CorpusStore, objective: SteeringObjective) -> np.ndarray:
    """The lifted tokens of every known concept, counted in labelled training chunks: (C, W) int32, −1 where unused.

    Raises `UserError` if no concept has any.
    """
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + _MAX_CHUNKS)
    bags, labels = chunk_bags(store, first, last), store.read("chunk_labels", first, last)
    C = len(store.concepts)
    table = np.full((C, objective.most_lifted), -1, np.int32)
    for start in range(0, C, _CONCEPTS_AT_ONCE):
        ids = np.arange(start, min(start + _CONCEPTS_AT_ONCE, C))
        positive = np.zeros((len(labels), len(ids)), bool)
        row, column = np.nonzero((labels >= ids[0]) & (labels <= ids[-1]))
        positive[row, labels[row, column] - start] = True
        lifted_by_concept = lifted_tokens(
            bags,
            positive,
            store.vocab_size,
            support=objective.support,
            least=objective.least_lift,
            most=objective.most_lifted,
            without=store.special.names(),
        )
        for concept, lifted in zip(ids, lifted_by_concept):
            table[concept, : len(lifted.tokens)] = lifted.tokens
    if (table < 0).all():
        raise UserError(
            f"No concept of the corpus {store.folder} has tokens with a lift of {objective.least_lift} in "
            f"{objective.support} chunks: lower objective.least_lift or objective.support, or label more text."
        )
    return table


def with_concepts(batches: Iterable[Example], lifted: np.ndarray, seed: int, first: int) -> Iterator[Example]:
    """Replaces the labels in batches by one concept per chunk and its lifted tokens.

    batches: from number `first` on. lifted: the table (C, W) of `lift_table`. Adds `concept` (B, S) int32, one of the
    chunk's labels that have lifted tokens, uniformly at random, −1 for none; and `lifted` (B, S, W) int32, the row of
    the table for that concept. Removes `chunk_labels`.
    """
    usable = np.asarray((lifted >= 0).any(axis=1))
    for number, batch in enumerate(batches, start=first):
        labels = batch["chunk_labels"]
        eligible = (labels >= 0) & usable[np.maximum(labels, 0)]
        # The generator is seeded per batch and sequence, not per process: a resumed run, and any division of a batch
        # among processes, draws the same concepts.
        draws = [
            np.random.default_rng((seed, number, int(sequence))).random(eligible.shape[1:])
            for sequence in batch["sequence"]
        ]
        # The largest of independent uniform draws is at each eligible label with equal probability.
        chosen = np.argmax(np.where(eligible, np.stack(draws), -1.0), axis=2)[..., None]
        concept = np.take_along_axis(np.where(eligible, labels, -1), chosen, axis=2)[..., 0]
        tokens = np.where(concept[..., None] >= 0, lifted[np.maximum(concept, 0)], -1)
        rest = {name: value for name, value in batch.items() if name != "chunk_labels"}
        yield {**rest, "concept": concept.astype(np.int32), "lifted": tokens.astype(np.int32)}

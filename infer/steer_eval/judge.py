"""Who judges steered texts: a bag-of-words probe and lifted tokens, both made from the corpus alone.

The probe learns from the training chunks' labels. It finds a concept where its score is above the threshold that tells
the held-out chunks best, by F1, cut to the length of the texts that are judged.

Legend: m chunks, V vocabulary, k concepts of the panel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.concepts.lift import Lifted, lifted_tokens, unrelated
from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.errors import UserError
from steerling_jax.evaluation.probe import fit_probe
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress

POSITIVES = 20  # held-out chunks with a concept, for it to be on the panel without being named
RECALL = 0.5  # of the probe, for a concept to be chosen without being named
SUPPORT, LEAST_LIFT, MOST_LIFTED = 5, 2.0, 20
_TRAIN_CHUNKS = 100_000


@dataclass(frozen=True)
class Judge:
    """A panel of concepts and what is known of each.

    concepts: ids (k,). positives (k,): held-out chunks. threshold (k,): of the probe's scores. recall and false_alarm
    (k,): shares of the held-out chunks with and without the concept in which the probe finds it. lifted: of each.
    unrelated (k, k) bool, from the training labels. score: bags of n texts to (n, k). special: ids that are no text.
    new_tokens: the most of a text.
    """

    concepts: np.ndarray
    positives: np.ndarray
    threshold: np.ndarray
    recall: np.ndarray
    false_alarm: np.ndarray
    lifted: Sequence[Lifted]
    unrelated: np.ndarray
    score: Callable[[Bags], np.ndarray]
    special: Collection[int]
    new_tokens: int

    def column(self, concept: int) -> int:
        """Where a concept's id stands on the panel."""
        return int(np.flatnonzero(self.concepts == concept)[0])

    def bags(self, texts: Sequence[Sequence[int]]) -> Bags:
        """Texts as ids, special ones left out, in a form that `score` takes."""
        table = np.full((len(texts), self.new_tokens), -1, np.int32)
        for row, ids in zip(table, texts):
            kept = [i for i in ids if i not in self.special]
            row[: len(kept)] = kept
        return Bags(table)

    def finds(self, concept: int, ids: Sequence[int]) -> bool:
        """Whether the probe finds a concept in a text."""
        column = self.column(concept)
        return bool(self.score(self.bags([ids]))[0, column] > self.threshold[column])

    def choose(self, count: int) -> list[int]:
        """Ids of `count` concepts that can be measured, spread evenly from the most frequent to the least."""
        fit = np.flatnonzero((self.positives >= POSITIVES) & (self.recall >= RECALL))
        if not fit.size:
            raise UserError(
                f"No concept of the corpus has {POSITIVES} held-out chunks and words that a probe can tell it by: "
                "name the concepts with --concepts, or make a larger corpus."
            )
        fit = fit[np.argsort(-self.positives[fit], kind="stable")]
        places = np.unique(np.linspace(0, len(fit) - 1, count).round().astype(int))
        return self.concepts[fit[places]].tolist()


def train_judge(
    store: CorpusStore, concepts: int, named: Collection[int], new_tokens: int, progress: Progress = no_progress
) -> Judge:
    """On the panel are, of concepts 0 … concepts − 1, those that are `named` and those with enough held-out chunks.

    new_tokens: length of the texts that will be judged. Raises `UserError` for a named concept without lifted tokens,
    and for a corpus without held-out documents.
    """
    first, last = store.chunks_between(*store.split("heldout"))
    if first == last:
        raise UserError(
            f"The corpus {store.folder} has no held-out documents, from which prompts are taken: prepare it with a "
            "--heldout-share above 0."
        )
    held, held_positive = chunk_bags(store, first, last), chunk_positives(store, first, last, concepts)
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + _TRAIN_CHUNKS)
    train, positive = chunk_bags(store, first, last), chunk_positives(store, first, last, concepts)
    names = {entry["id"]: entry["name"] for entry in store.concepts}
    wanted = np.union1d(np.flatnonzero(held_positive.sum(axis=0) >= POSITIVES), sorted(named)).astype(int)
    lifted = lifted_tokens(
        train,
        positive[:, wanted],
        store.vocab_size,
        support=SUPPORT,
        least=LEAST_LIFT,
        most=MOST_LIFTED,
        without=store.special.names(),
    )
    for concept, found in zip(wanted.tolist(), lifted):
        if concept in named and not found.tokens.size:
            raise UserError(
                f"The corpus has no token that goes with {names[concept]!r}: leave it out of "
                f"--concepts, or label more training chunks with it than {int(positive[:, concept].sum())}."
            )
    kept = [i for i, found in enumerate(lifted) if found.tokens.size]
    wanted, lifted = wanted[kept], [lifted[i] for i in kept]
    score = fit_probe(train, positive[:, wanted], store.vocab_size, progress=progress)
    scores, there = score(Bags(held.tokens[:, :new_tokens])), held_positive[:, wanted]
    threshold = np.array([best_threshold(s, p) for s, p in zip(scores.T, there.T)])
    found, count = scores > threshold, there.sum(axis=0)
    recall = (found & there).sum(axis=0) / np.maximum(count, 1)
    false_alarm = (found & ~there).sum(axis=0) / np.maximum(len(there) - count, 1)
    return Judge(
        wanted,
        count,
        threshold,
        recall,
        false_alarm,
        lifted,
        unrelated(positive[:, wanted]),
        score,
        store.special.names(),
        new_tokens,
    )


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """Halfway between two of the scores (m,), with the best F1 for positive (m,) bool; infinite without positives."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    if not hits[-1]:
        return float("inf")
    cut = int(np.argmax(2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])))
    ranked = scores[order]
    return float((ranked[cut] + ranked[min(cut + 1, len(ranked) - 1)]) / 2)

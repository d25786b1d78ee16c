"""The judge of steered texts: a bag-of-words probe and lifted tokens, both fitted on the corpus alone.

The probe is trained on the labels of the training chunks. It finds a concept in a text where its score is above the
threshold with the best F1 on the held-out chunks, cut to the length of the texts that are judged.

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

MIN_CHUNKS = 20  # held-out chunks with a concept, for it to be on the panel without being named
MIN_RECALL = 0.5  # of the probe, for a concept to be chosen without being named
# Of lifted tokens: chunks of the concept that contain one, lift, and number for each concept.
MIN_SUPPORT, MIN_LIFT, MAX_LIFTED = 5, 2.0, 20
_TRAIN_CHUNKS = 100_000


@dataclass(frozen=True)
class Judge:
    """A panel of concepts with a probe for each.

    concepts: ids (k,). positives (k,): held-out chunks with the concept. threshold (k,): of the probe's scores. recall
    and false_alarm (k,): shares of the held-out chunks with and without the concept in which the probe finds it.
    lifted: of each concept. unrelated (k, k) bool, from the training labels. score: bags of n texts to (n, k). special:
    ids that are not text. new_tokens: largest length of a text.
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
        """The index of a concept's id on the panel."""
        return int(np.flatnonzero(self.concepts == concept)[0])

    def bags(self, texts: Sequence[Sequence[int]]) -> Bags:
        """Texts as ids, without special ones, in the form that `score` takes."""
        table = np.full((len(texts), self.new_tokens), -1, np.int32)
        for row, ids in zip(table, texts):
            text = [i for i in ids if i not in self.special]
            row[: len(text)] = text
        return Bags(table)

    def finds(self, concept: int, ids: Sequence[int]) -> bool:
        """Whether the probe finds a concept in a text."""
        column = self.column(concept)
        return bool(self.score(self.bags([ids]))[0, column] > self.threshold[column])

    def choose(self, count: int) -> list[int]:
        """Ids of `count` concepts that can be measured, evenly spaced from the most frequent to the least frequent."""
        measurable = np.flatnonzero((self.positives >= MIN_CHUNKS) & (self.recall >= MIN_RECALL))
        if not measurable.size:
            raise UserError(
                f"No concept of the corpus has {MIN_CHUNKS} held-out chunks and tokens by which a probe can detect it: "
                "name the concepts with --concepts, or make a larger corpus."
            )
        ranked = measurable[np.argsort(-self.positives[measurable], kind="stable")]
        ranks = np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))
        return self.concepts[ranked[ranks]].tolist()


def train_judge(
    store: CorpusStore, concepts: int, named: Collection[int], new_tokens: int, progress: Progress = no_progress
) -> Judge:
    """A judge whose panel has, of the concepts 0 … concepts − 1, those that are `named` and those with enough held-out
    chunks.

    new_tokens: length of the texts that will be judged. Raises `UserError` for a named concept without lifted tokens,
    and for a corpus without held-out documents.
    """
    held, held_positive = _labelled_chunks(store, "heldout", concepts)
    train, positive = _labelled_chunks(store, "train", concepts, _TRAIN_CHUNKS)
    panel = np.union1d(np.flatnonzero(held_positive.sum(axis=0) >= MIN_CHUNKS), sorted(named)).astype(int)
    panel, lifted = _with_lifted(store, train, positive, panel, named)
    score = fit_probe(train, positive[:, panel], store.vocab_size, progress=progress)
    # On chunks cut to the length of the judged texts, so that the threshold fits texts of that length.
    scores, present = score(Bags(held.tokens[:, :new_tokens])), held_positive[:, panel]
    threshold = np.array([best_threshold(s, p) for s, p in zip(scores.T, present.T)])
    found, count = scores > threshold, present.sum(axis=0)
    return Judge(
        concepts=panel,
        positives=count,
        threshold=threshold,
        recall=(found & present).sum(axis=0) / np.maximum(count, 1),
        false_alarm=(found & ~present).sum(axis=0) / np.maximum(len(present) - count, 1),
        lifted=lifted,
        unrelated=unrelated(positive[:, panel]),
        score=score,
        special=store.special.names(),
        new_tokens=new_tokens,
    )


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """The midpoint between two of the scores (m,) with the best F1 for positive (m,) bool; infinity without
    positives."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    if not hits[-1]:
        return float("inf")
    # With the n highest scores found, F1 = 2 · hits / (n + positives).
    cut = int(np.argmax(2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])))
    ranked = scores[order]
    return float((ranked[cut] + ranked[min(cut + 1, len(ranked) - 1)]) / 2)


def _labelled_chunks(
    store: CorpusStore, split: str, concepts: int, limit: int | None = None
) -> tuple[Bags, np.ndarray]:
    """The first `limit` chunks of a split: their bags, and their labels (m, concepts) bool."""
    first, last = store.chunks_between(*store.split(split))
    if first == last and split == "heldout":
        raise UserError(
            f"The corpus {store.folder} has no held-out documents, from which prompts are taken: prepare it with a "
            "--heldout-share above 0."
        )
    last = last if limit is None else min(last, first + limit)
    return chunk_bags(store, first, last), chunk_positives(store, first, last, concepts)


def _with_lifted(
    store: CorpusStore, train: Bags, positive: np.ndarray, panel: np.ndarray, named: Collection[int]
) -> tuple[np.ndarray, list[Lifted]]:
    """The concepts of the panel that have lifted tokens, and these. Raises `UserError` where a named one has none."""
    lifted = lifted_tokens(
        train,
        positive[:, panel],
        store.vocab_size,
        support=MIN_SUPPORT,
        least=MIN_LIFT,
        most=MAX_LIFTED,
        without=store.special.names(),
    )
    names = {entry["id"]: entry["name"] for entry in store.concepts}
    for concept, one in zip(panel.tolist(), lifted):
        if concept in named and not one.tokens.size:
            raise UserError(
                f"The corpus has no token that is typical of {names[concept]!r}: leave it out of --concepts, or label "
                f"more training chunks with it than {int(positive[:, concept].sum())}."
            )
    selected = [i for i, one in enumerate(lifted) if one.tokens.size]
    return panel[selected], [lifted[i] for i in selected]

"""Chooses, scores and describes the names of a head's concepts, and merges them into a model's catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import WORD_SEPARATOR, Concept, Head, NameQuality, no_name, unique_names
from steerling_jax.corpus.reader import Corpus
from steerling_jax.explain.chunk_texts import ChunkTexts
from steerling_jax.explain.naming.activations import chunk_means, sample_chunks
from steerling_jax.explain.naming.selection import propose_names, score_names
from steerling_jax.explain.naming.units import name_units, readable
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.progress import Progress, no_progress

EXAMPLE_CHARACTERS = 120
_PROMPT_TEXTS = 6  # strongest texts that a labelling command reads
_PROMOTED = 12
_CONCEPTS = 2048  # at a time: the activations of a batch of tokens are one array

# A name for a concept: (description of the concept in errors, its words, promoted tokens, strongest texts) -> name.
Labeller = Callable[[str, Sequence[str], Sequence[str], Sequence[str]], str]


@dataclass(frozen=True)
class NamingSettings:
    """tokens, heldout_tokens: of the texts on which names are chosen and scored. threshold: the AUC below which a
    concept has no name. examples: texts listed for each concept. seq_len: tokens per sequence. seed: of the masks."""

    tokens: int = 200_000
    heldout_tokens: int = 200_000
    threshold: float = 0.8
    examples: int = 2
    seq_len: int = 256
    seed: int = 0


@dataclass(frozen=True)
class NamedConcept:
    """A concept with its words' quality and, from a labelling command, the name that it gave with the quality of that;
    `entry` is its new entry in the catalogue."""

    entry: Concept
    words: NameQuality | None
    label: str | None = None
    label_quality: NameQuality | None = None


def name_concepts(
    bundle: Bundle,
    store: Corpus,
    head: Head,
    ids: Sequence[int],
    settings: NamingSettings,
    *,
    label: Labeller | None = None,
    progress: Progress = no_progress,
) -> list[NamedConcept]:
    """Names for the concepts `ids` of a head, chosen on the training split and scored on the held-out split.

    Near copies of a document are on one side of that split, so none is in both. label: gives names in place of those
    made of words, which are scored by the same rule.
    """
    texts = ChunkTexts(bundle, store)
    ranges = [sample_chunks(store, split, count) for split, count in _splits(settings)]
    named: list[NamedConcept] = []
    for first in range(0, len(ids), _CONCEPTS):
        named += _name_batch(
            bundle, store, texts, head, ids[first : first + _CONCEPTS], ranges, settings, label, progress
        )
    return _with_unique_names(named, bundle.concepts, head)


def _splits(settings: NamingSettings) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("train", settings.tokens), ("heldout", settings.heldout_tokens)


def _name_batch(
    bundle: Bundle,
    store: Corpus,
    texts: ChunkTexts,
    head: Head,
    ids: Sequence[int],
    ranges: Sequence[list[tuple[int, int]]],
    settings: NamingSettings,
    label: Labeller | None,
    progress: Progress,
) -> list[NamedConcept]:
    halves: list[tuple[list[str], np.ndarray]] = []
    for (split, _), chunks in zip(_splits(settings), ranges, strict=True):
        numbers, means = chunk_means(
            bundle,
            store,
            head,
            ids,
            chunks,
            seq_len=settings.seq_len,
            seed=settings.seed,
            progress=progress,
            stage=f"reading the {split} split",
        )
        halves.append(([readable(texts.tokenizer, texts.text(number)) for number in numbers.tolist()], means))
    promoted = [
        [readable(texts.tokenizer, token) for token in row] for row in promoted_pieces(bundle, ids, _PROMOTED, head)
    ]
    (chosen_on, means), scored_on = halves
    vocabulary, proposals = propose_names((chosen_on, means), scored_on, promoted, progress)
    strongest = np.argsort(-means, axis=0, kind="stable")[:_PROMPT_TEXTS].T
    labels: list[str | None] = [None] * len(ids)
    qualities: list[NameQuality | None] = [None] * len(ids)
    if label is not None:
        for j, proposal in enumerate(proposals):
            if proposal.quality is not None:
                about = [chosen_on[row] for row in strongest[j] if means[row, j] > 0]
                labels[j] = label(f"{head} concept {ids[j]}", proposal.words, promoted[j], about)
            progress("labels", j + 1, len(ids))
        units = [[] if one is None else vocabulary.find(name_units(one)) for one in labels]
        qualities = score_names(vocabulary, *scored_on, units)
    named = []
    for j, (number, proposal) in enumerate(zip(ids, proposals, strict=True)):
        examples = [chosen_on[row] for row in strongest[j][: settings.examples] if means[row, j] > 0]
        name, quality = WORD_SEPARATOR.join(f" {word} " for word in proposal.words).strip(), proposal.quality
        # The command's name is taken if it is good enough, else the words, if they are.
        if labels[j] is not None and _reaches(qualities[j], settings.threshold):
            name, quality = labels[j] or "", qualities[j]
        is_named = _reaches(quality, settings.threshold)
        old = bundle.concepts.get(number, head)
        entry = dataclasses.replace(
            old,
            name=name if is_named else no_name(number, proposal.words),
            is_named=is_named,
            words=proposal.words,
            quality=quality,
            examples=tuple(_shortened(text) for text in examples),
        )
        named.append(NamedConcept(entry, proposal.quality, labels[j], qualities[j]))
    return named


def _reaches(quality: NameQuality | None, threshold: float) -> bool:
    """Whether a name is good enough: at least the threshold, and better than the names of other concepts."""
    return quality is not None and quality.auc >= max(threshold, quality.others or 0.0)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[: EXAMPLE_CHARACTERS - 1]}…"


def _with_unique_names(named: Sequence[NamedConcept], catalogue: Catalogue, head: Head) -> list[NamedConcept]:
    """The same with " (2)" and so on after names that occur before: names of concepts that are not named here come
    first, then the names with the highest AUC."""
    ids = {one.entry.id for one in named}
    taken = [one.name for one in catalogue.concepts if one.head != head or one.id not in ids]
    order = sorted(
        (one for one in named if one.entry.is_named and one.entry.quality is not None),
        key=lambda one: (-(one.entry.quality.auc if one.entry.quality else 0.0), one.entry.id),
    )
    unique = dict(zip((one.entry.id for one in order), unique_names([one.entry.name for one in order], taken)))
    return [
        dataclasses.replace(one, entry=dataclasses.replace(one.entry, name=unique.get(one.entry.id, one.entry.name)))
        for one in named
    ]


def merged_catalogue(catalogue: Catalogue, named: Sequence[NamedConcept]) -> Catalogue:
    """The catalogue with new entries in place of the old ones. Concepts without words and without a name have none."""
    entries = {(one.head, one.id): one for one in catalogue.concepts}
    for one in named:
        if one.entry.is_named or one.entry.words:
            entries[one.entry.head, one.entry.id] = one.entry
        else:
            entries.pop((one.entry.head, one.entry.id), None)
    return dataclasses.replace(catalogue, concepts=tuple(entries.values()))

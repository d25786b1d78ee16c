"""Annotators assign known concepts to chunks: their interface, labels from documents, and the merging of several.

Labels are positive only: a missing label is not evidence that a chunk is not about a concept. The store records which
annotator each label is from (`chunk_origins`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS
from steerling_jax.train.corpus.documents import Document


class TextChunk(NamedTuple):
    """A chunk's text and its first character's position in the document."""

    text: str
    start: int


class Annotator(Protocol):
    """Labels the chunks of a document.

    Each worker builds its own instance, so labels must depend on the document alone, not on documents seen before.
    """

    @property
    def name(self) -> str:
        """The annotator's name in the store's manifest."""
        ...

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        """Concept ids of each chunk, the most certain first."""
        ...


class DocumentLabels:
    """An annotator that assigns a document's own labels, given by concept name, to all of its chunks."""

    name = "document"

    def __init__(self, names: Sequence[str]):
        self._ids = {name: number for number, name in enumerate(names)}

    def ids_of(self, document: Document) -> list[int]:
        """Concept ids of the document's labels. Raises `UserError` for a label that is not a concept's name."""
        for name in document.labels:
            if name not in self._ids:
                raise UserError(
                    f"{document.name} is labelled with the unknown concept {name!r}: use the name of one of this "
                    "corpus's concepts, or describe it in a file for --concepts."
                )
        return [self._ids[name] for name in document.labels]

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        ids = self.ids_of(document)
        return [ids for _ in chunks]


def annotate(
    annotators: Sequence[Annotator], document: Document, chunks: Sequence[TextChunk]
) -> tuple[list[list[int]], list[list[int]]]:
    """Labels and origins of each chunk: each concept once, at most 16, by priority of the annotators.

    An origin is an index into `annotators`.
    """
    merged: list[dict[int, int]] = [{} for _ in chunks]  # label to origin, in order of insertion
    for origin, annotator in enumerate(annotators):
        for labels, new in zip(merged, annotator.annotate(document, chunks), strict=True):
            for label in new:
                if len(labels) < MAX_LABELS:
                    labels.setdefault(label, origin)
    return [list(labels) for labels in merged], [list(labels.values()) for labels in merged]

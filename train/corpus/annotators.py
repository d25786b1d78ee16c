"""Who says which concepts a chunk is about: one interface, and what several say put together.

An annotator sees a document with its chunks and gives each chunk's concept ids. Labels are positive-only: a missing
one says nothing. Which annotator gave a label is kept with it (`chunk_origins` in the store).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS
from steerling_jax.train.corpus.documents import Document


class TextChunk(NamedTuple):
    """A chunk's text and the character of the document that it begins at."""

    text: str
    start: int


class Annotator(Protocol):
    """Gives labels. Made anew in every worker, so it must say the same whatever else it has seen."""

    @property
    def name(self) -> str:
        """What the labels' origin is called."""
        ...

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        """Concept ids of each chunk, the surest first."""
        ...


class OwnLabels:
    """The labels that a document brings along, by concept name; they hold for all of its chunks."""

    name = "document"

    def __init__(self, names: Sequence[str]):
        self._ids = {name: number for number, name in enumerate(names)}

    def ids_of(self, document: Document) -> list[int]:
        """Raises `UserError` for a label that is no concept."""
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
    """Labels and origins of each chunk: every concept once, at most 16, those of the first annotators first.

    An origin is a number of `annotators`.
    """
    found: list[dict[int, int]] = [{} for _ in chunks]
    for origin, annotator in enumerate(annotators):
        for labels, given in zip(found, annotator.annotate(document, chunks), strict=True):
            for label in given:
                if len(labels) < MAX_LABELS:
                    labels.setdefault(label, origin)
    return [list(labels) for labels in found], [list(labels.values()) for labels in found]

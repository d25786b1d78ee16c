"""The merging of several annotators' labels, with their origins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS
from steerling_jax.train.corpus.annotators import DocumentLabels, TextChunk, annotate
from steerling_jax.train.corpus.documents import Document


class Fixed:
    """Assigns the same concepts to every chunk."""

    def __init__(self, *ids: int):
        self.name, self.ids = "fixed", list(ids)

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        return [self.ids for _ in chunks]


def test_annotators_are_merged_by_priority():
    document = Document("d", "text", "", labels=("B",))
    annotators = [DocumentLabels(["A", "B"]), Fixed(3, 1), Fixed(3, 0)]
    labels, origins = annotate(annotators, document, [TextChunk("x", 0)] * 2)
    assert labels == [[1, 3, 0]] * 2
    assert origins == [[0, 1, 2]] * 2
    labels, origins = annotate([Fixed(*range(10)), Fixed(*range(5, 40))], document, [TextChunk("x", 0)])
    assert labels == [list(range(MAX_LABELS))]
    assert origins == [[0] * 10 + [1] * 6]
    with pytest.raises(UserError, match="unknown concept 'B'"):
        annotate([DocumentLabels(["A"])], document, [])

"""What a search of the training data finds for a piece of text: the record that the index makes and reports show."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, get_args

Score = Literal["verbatim", "signature", "representation", "influence"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class Hit:
    """One place in the corpus.

    value: the score's own number: matched tokens (verbatim), cosine of signatures, of hidden rows (representation), of
    gradients (influence). chunk, document: their numbers in the store; start, end: token span in the store;
    offset: of its first token from the document's start. text: the span's. query: the tokens [start, end) of the
    explained text that it matches. occurrences: of a verbatim span, how many places of the corpus it occurs at.
    """

    score: Score
    value: float
    chunk: int
    document: int
    name: str
    source: str
    sha256: str
    start: int
    end: int
    offset: int
    text: str
    query: tuple[int, int]
    occurrences: int | None = None


@dataclass(frozen=True)
class Evidence:
    """Hits of each score for tokens [start, end) of a text, best first.

    thresholds: the value of each score that 1 of 100 texts of no sense of that length reaches, of 64 tokens where the
    text has more; hits not above it are not listed, and a score that has none listed found nothing close.
    """

    start: int
    end: int
    hits: tuple[Hit, ...]
    thresholds: dict[Score, float]

    def of(self, score: Score) -> tuple[Hit, ...]:
        return tuple(hit for hit in self.hits if hit.score == score)

    @property
    def nothing_close(self) -> tuple[Score, ...]:
        """The scores that found nothing above their threshold."""
        return tuple(score for score in self.thresholds if not any(hit.score == score for hit in self.hits))

    def sources(self, score: Score) -> dict[str, float]:
        """Each source's share of the sum of the positive values of a score's hits, largest first."""
        sums: dict[str, float] = defaultdict(float)
        for hit in self.of(score):
            sums[hit.source] += max(hit.value, 0.0)
        total = sum(sums.values())
        return {name: value / total for name, value in sorted(sums.items(), key=lambda item: -item[1]) if total > 0}

"""Evidence: the result of a search of the training data for one span of text."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, get_args

Score = Literal["verbatim", "signature", "representation", "influence"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class Hit:
    """One place in the corpus that a score found.

    Attributes:
        score: The score that found it.
        value: The score's value: number of equal tokens (verbatim), or the cosine of signatures, of hidden rows
            (representation), or of gradients (influence).
        chunk, document: Numbers of the chunk and of the document in the corpus store.
        name, source, sha256: The document's name, source and hash.
        start, end: Token span in the corpus store.
        offset: Position of `start` counted from the document's first token.
        text: The span as text.
        query: Span [start, end) of the searched text that it matches.
        occurrences: Number of places in the corpus with the same tokens; None for scores other than verbatim.
        license: The license of the document's source; empty where the corpus records none.
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
    license: str = ""


@dataclass(frozen=True)
class Evidence:
    """Hits for tokens [start, end) of a text, by score, best first.

    Attributes:
        thresholds: For each score the value that 1 in 100 random texts of the span's length reaches (of 64 tokens for
            longer spans; see `thresholds.py`). Only hits above it are listed, so a score without hits found nothing
            that is closer than chance.
        best: For each score the best value in the corpus, also below its threshold. Empty in evidence of versions that
            did not record it.
    """

    start: int
    end: int
    hits: tuple[Hit, ...]
    thresholds: dict[Score, float]
    best: dict[Score, float] = field(default_factory=dict)

    def of(self, score: Score) -> tuple[Hit, ...]:
        """The hits of one score, best first."""
        return tuple(hit for hit in self.hits if hit.score == score)

    @property
    def nothing_close(self) -> tuple[Score, ...]:
        """The scores without a hit above their threshold."""
        return tuple(score for score in self.thresholds if not any(hit.score == score for hit in self.hits))

    def sources(self, score: Score) -> dict[str, float]:
        """Share of each source in the sum of the positive values of a score's hits, largest first."""
        sums: dict[str, float] = defaultdict(float)
        for hit in self.of(score):
            sums[hit.source] += max(hit.value, 0.0)
        total = sum(sums.values())
        return {name: value / total for name, value in sorted(sums.items(), key=lambda item: -item[1]) if total > 0}

"""A figure of a record: values that were recorded beside the same ones computed again, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Figure:
    """Recorded and computed values of one kind, and their largest difference.

    name: for people. tolerance: the largest accepted difference, as a fraction of the largest computed value. values:
    how many numbers were compared. difference, scale: the largest difference and the largest computed value. place:
    where the largest difference is. contradictions: what differs and is no number, such as a document's name.
    """

    name: str
    tolerance: float
    values: int = 0
    difference: float = 0.0
    scale: float = 0.0
    place: str = ""
    contradictions: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not self.contradictions and self.difference <= self.tolerance * self.scale

    def compare(self, place: str, recorded: Any, computed: Any) -> None:
        """Compares numbers, or arrays of them in which the largest difference counts."""
        found, expected = (np.asarray(value, np.float64).reshape(-1) for value in (recorded, computed))
        if found.shape != expected.shape:
            self.contradict(f"{place} has {found.size} values, computed {expected.size}")
            return
        self.values += expected.size
        self.scale = max(self.scale, float(np.abs(expected).max(initial=0.0)))
        # A recorded NaN compares as an infinite difference, not as none.
        differences = np.nan_to_num(np.abs(found - expected), nan=math.inf)
        if differences.size and differences.max() > self.difference:
            self.difference, self.place = float(differences.max()), place

    def compare_field(self, place: str, recorded: Any, computed: Any) -> None:
        """Compares values that are equal or not: names, numbers of documents, texts."""
        self.values += 1
        if recorded != computed:
            self.contradict(f"{place} is {_short(recorded)}, computed {_short(computed)}")

    def compare_listed(
        self, place: str, recorded: Mapping[int, float], computed: Mapping[int, float], limit: int | None
    ) -> None:
        """Compares a list of the strongest entries with all entries that were computed, by id.

        recorded: id to value, cut after `limit` entries if that is not None. An entry that was not listed must not be
        stronger than the weakest that was; where the list was not full, it must be 0.
        """
        for number, value in recorded.items():
            self.compare(f"{place}, {number}", value, computed.get(number, 0.0))
        full = limit is not None and len(recorded) >= limit
        bound = min((abs(value) for value in recorded.values()), default=0.0) if full else 0.0
        for number in computed.keys() - recorded.keys():
            if abs(computed[number]) > bound:
                self.compare(f"{place}, {number}, which is not listed", bound, abs(computed[number]))

    def contradict(self, sentence: str) -> None:
        self.contradictions.append(sentence)


@dataclass(frozen=True)
class Identity:
    """What a record says that it was made with, beside what is used now; None where either does not say."""

    name: str
    recorded: str | None
    now: str | None

    @property
    def agrees(self) -> bool:
        return self.recorded is None or self.recorded == self.now


@dataclass(frozen=True)
class Verification:
    """The outcome: identities, figures, and figures that were left out with the reason for it."""

    identities: Sequence[Identity]
    figures: Sequence[Figure]
    left_out: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        return all(one.agrees for one in (*self.identities, *self.figures))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

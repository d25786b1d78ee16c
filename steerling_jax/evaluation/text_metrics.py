"""Metrics of the diversity of a text, from its tokens alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def distinct(ids: Sequence[int], n: int) -> float | None:
    """The number of different n-grams over the number of all n-grams; None for a text shorter than n."""
    grams = _grams(ids, n)
    return len(set(grams)) / len(grams) if grams else None


def repeated(ids: Sequence[Any], n: int) -> float | None:
    """The share of the n-grams of ids or words that occur more than once; None for a text shorter than n."""
    grams = _grams(ids, n)
    return sum(count for count in Counter(grams).values() if count > 1) / len(grams) if grams else None


def _grams(ids: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]

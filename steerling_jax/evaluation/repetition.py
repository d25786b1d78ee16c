"""Endless repetition: whether a text ends in a cycle of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 32  # tokens of the longest cycle that is looked for
REPEATS = 3  # how often a cycle occurs at the end of an endless repetition, at least
LEAST = 12  # tokens that it fills, at least


class Cycle(NamedTuple):
    """The end of a text repeats its last `period` tokens, over `length` tokens."""

    period: int
    length: int


def cycle_at_end(ids: Sequence[int] | np.ndarray) -> Cycle | None:
    """The cycle in which a text ends, the one with the shortest period; None where it ends in none.

    A cycle of at most 32 tokens fills at least 12 tokens and occurs at least three times, the last time perhaps in
    part. A text that ends so was cut off, or ended by accident: the model would have gone on.
    """
    tokens = np.asarray(ids)[::-1]  # from the end
    for period in range(1, min(LONGEST, len(tokens) // 2) + 1):
        differs = tokens[period:] != tokens[:-period]
        equal = int(np.argmax(differs)) if differs.any() else len(differs)
        length = equal + period
        if length >= max(REPEATS * period, LEAST):
            return Cycle(period, length)
    return None

"""Addition of steerings: `a + b` acts as both, wherever a steering is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Composable:
    """A mixin for steerings, whose sum with another one, or with a sequence of them, is the tuple of all."""

    def __add__(self, other: Any) -> tuple[Any, ...]:
        parts = _parts(other)
        return NotImplemented if parts is None else (self, *parts)

    def __radd__(self, other: Any) -> tuple[Any, ...]:
        parts = _parts(other)
        return NotImplemented if parts is None else (*parts, self)


def _parts(other: Any) -> tuple[Any, ...] | None:
    if isinstance(other, Composable):
        return (other,)
    if isinstance(other, Sequence) and not isinstance(other, str):
        return tuple(other)
    return () if other == 0 else None  # `sum` begins with 0

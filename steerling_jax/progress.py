"""How far a long computation is, for whoever asked: the core calls, programs show."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # stage, done, total


def no_progress(stage: str, done: int, total: int) -> None:
    """Tells nobody."""

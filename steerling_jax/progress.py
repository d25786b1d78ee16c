"""Progress callbacks: the core reports how far a long computation is, programs show it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (stage, done, total): `done` of `total` steps of the stage are finished


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignores the report; the default where a function takes a progress callback."""

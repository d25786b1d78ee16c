"""What the training loop tells whoever drives it. Step 1 is the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Began:
    """Training goes on after `step` (0: from the start). order: what came from where, the first thing first.
    unreadable: newer checkpoints that were passed over, with the reasons."""

    step: int
    order: tuple[str, ...]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Compiled:
    """The step is compiled, or was found in the compilation cache."""

    seconds: float


@dataclass(frozen=True)
class Step:
    """Step `step` is done; told one step late, while the next one runs. mfu: share of the devices' peak. None where
    that is not known, as after the first step."""

    step: int
    metrics: Mapping[str, float]
    tokens_per_second: float | None
    mfu: float | None


@dataclass(frozen=True)
class Spike:
    """The loss of `step` stands far above those before it, whose median is `median`. sequences: of its batch."""

    step: int
    loss: float
    median: float
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class Evaluated:
    step: int
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """The checkpoint of `step` is complete on disk."""

    step: int


@dataclass(frozen=True)
class Profiled:
    """A trace is written under `folder`."""

    folder: Path


@dataclass(frozen=True)
class Stopped:
    """Asked to stop: everything up to `step` is saved."""

    step: int
    clock: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    step: int
    params: Any
    clock: Mapping[str, Any]


Event = Began | Compiled | Step | Spike | Evaluated | Saved | Profiled | Stopped | Done

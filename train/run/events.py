"""Events of the training loop, for the program that drives it. Steps are numbered from 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunStarted:
    """Training starts after `step` (0: a new run).

    sources: one sentence each on where parameters, optimizer state, data and metrics come from.
    unreadable: newer checkpoints that were skipped, as (step, reason).
    """

    step: int
    sources: tuple[str, ...]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class StepCompiled:
    """The training step was compiled, or loaded from the compilation cache."""

    seconds: float


@dataclass(frozen=True)
class StepDone:
    """Metrics of `step`. The event comes while the next step runs on the device, so one step late.

    tokens_per_second, mfu (model FLOPs utilisation, 0 to 1): None where unknown, as after the first step.
    """

    step: int
    metrics: Mapping[str, float]
    tokens_per_second: float | None
    mfu: float | None


@dataclass(frozen=True)
class LossSpike:
    """The loss of `step` is far above the losses before it, whose median is `median`. sequences: numbers of the
    sequences of its batch."""

    step: int
    loss: float
    median: float
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class Evaluated:
    """Held-out figures after `step`, as JSON values."""

    step: int
    results: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint of `step` is complete on disk."""

    step: int


@dataclass(frozen=True)
class TraceWritten:
    """A profiler trace was written to `folder`."""

    folder: Path


@dataclass(frozen=True)
class RunStopped:
    """The run was asked to stop; everything up to `step` is saved. clock: seconds by phase."""

    step: int
    clock: Mapping[str, Any]


@dataclass(frozen=True)
class RunFinished:
    """All steps are done. params: of the model, with adapters merged. clock: seconds by phase."""

    step: int
    params: Any
    clock: Mapping[str, Any]


Event = (
    RunStarted
    | StepCompiled
    | StepDone
    | LossSpike
    | Evaluated
    | CheckpointSaved
    | TraceWritten
    | RunStopped
    | RunFinished
)

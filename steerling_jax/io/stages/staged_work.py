"""Long work as stages of small tasks, which run in this process, in several local ones, or as an Apache Beam pipeline.

A stage is a list of independent tasks, and starts when all tasks of the stage before are complete. A task reads files
and writes files, the same ones wherever it runs; a task whose output exists is not listed again. So interrupted work
resumes with the tasks that are left, and its result does not depend on what runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.errors import require
from steerling_jax.io.storage import StoragePath


@dataclass(frozen=True)
class StagedWork:
    """The stages of a kind of work; what they work on is described by files in a working folder.

    names: of the stages, in order. tasks: lists the tasks of a stage, by its number, that are not complete. run: does
    one of them. Both are functions of a module and tasks are small values, since other processes get them pickled.
    memory: what to do where a process lacks memory, for the error message.
    """

    names: tuple[str, ...]
    tasks: Callable[[int, StoragePath], list[Any]]
    run: Callable[[int, StoragePath, Any], None]
    memory: str


@dataclass(frozen=True)
class RunnerConfig:
    """What runs the tasks: `workers` processes on this machine, or an Apache Beam runner.

    beam_runner: the name of a Beam runner; None for local processes. beam_options: Beam's pipeline options as
    NAME=VALUE. The result does not depend on any of these. Raises `UserError` for values that exclude each other.
    """

    workers: int = 1
    beam_runner: str | None = None
    beam_options: Sequence[str] = ()

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--workers is {self.workers}, but it must be at least 1.")
        require(
            self.beam_runner is None or self.workers == 1,
            "--workers counts local processes: set the number of workers of a --runner with --runner-options.",
        )
        require(
            self.beam_runner is not None or not self.beam_options,
            "--runner-options need a --runner: name one.",
        )

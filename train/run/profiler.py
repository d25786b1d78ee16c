"""A profiler trace of a few steps, for TensorBoard's profile page or Perfetto; written by the first process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.train.run.processes import is_first

PROFILE_FOLDER = "profile"


def parse_steps(text: str) -> tuple[int, int]:
    """`10:13` to (10, 13): the first and the last step to trace. Raises `UserError` for anything else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--profile is {text!r}, but it must be FIRST:LAST, two step numbers like 10:13.")
    return int(match[1]), int(match[2])


class Profiler:
    """Traces `steps` (first, last) into a folder; does nothing without them. Tracing waits for the device around the
    traced steps, so that they hold their own work and no other."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self.folder = folder / PROFILE_FOLDER
        self._steps = steps if steps is not None and is_first() else None
        self._on = False

    @contextlib.contextmanager
    def step(self, number: int, before: Any) -> Iterator[None]:
        """Around the dispatch of step `number`, whose input is `before`."""
        if self._steps is not None and self._steps[0] <= number <= self._steps[1] and not self._on:
            jax.block_until_ready(before)
            jax.profiler.start_trace(str(self.folder))
            self._on = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield

    def finish(self, number: int, after: Any, *, last: bool) -> bool:
        """After step `number`, whose output is `after`: whether the trace has just been written."""
        if not self._on or not (last or (self._steps is not None and number >= self._steps[1])):
            return False
        jax.block_until_ready(after)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()

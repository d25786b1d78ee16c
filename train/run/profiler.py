"""Writes a profiler trace of a few steps, for TensorBoard's profile page or Perfetto, from the first process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.train.run.processes import is_first_process

PROFILE_FOLDER = "profile"


def parse_steps(text: str) -> tuple[int, int]:
    """Parses `10:13` to (10, 13), the first and the last step to trace. Raises `UserError` for another form."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--profile is {text!r}, but it must be FIRST:LAST, two step numbers like 10:13.")
    return int(match[1]), int(match[2])


class Profiler:
    """Traces the steps (first, last) into `folder`/profile; None traces nothing.

    Steps are dispatched ahead of the device. The profiler waits for the device before the first and after the last
    traced step, so that the trace holds exactly the work of these steps.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self.folder = folder / PROFILE_FOLDER
        self._steps = steps if steps is not None and is_first_process() else None
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int, before: Any) -> Iterator[None]:
        """Use around the dispatch of step `number`; `before` is its input state."""
        if self._steps is not None and self._steps[0] <= number <= self._steps[1] and not self._tracing:
            jax.block_until_ready(before)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield

    def finish(self, number: int, after: Any, *, last: bool) -> bool:
        """Call after step `number`; `after` is its output state. True where the trace was written just now.

        last: whether no step follows.
        """
        if not self._tracing or not (last or (self._steps is not None and number >= self._steps[1])):
            return False
        jax.block_until_ready(after)
        self.close()
        return True

    def close(self) -> None:
        """Stops a trace that is running."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

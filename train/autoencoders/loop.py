"""The loop of these trainings: a generator that updates a state, saves it, and yields events.

A run that is killed at any moment and started again reaches the same state, bit for bit: the batch of a step depends on
its number alone, and a checkpoint holds everything else. Several processes run the loop together, if their training
has a mesh (`train/run/processes.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.training import TrainingCheckpoints
from steerling_jax.train.run.clock import Clock
from steerling_jax.train.run.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
)
from steerling_jax.train.run.metrics import MetricsLog
from steerling_jax.train.run.processes import ProcessAgreement, SaveTimer, is_first_process


class RunSettings(Protocol):
    """What the loop reads of a run's configuration: see `AutoencoderRun`."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def checkpoint_minutes(self) -> float | None: ...
    @property
    def keep(self) -> int: ...


class Training(Protocol):
    """What is trained, and on what."""

    @property
    def sources(self) -> tuple[str, ...]:
        """One sentence each on what the run works with."""
        ...

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of all processes; None for one device of one process."""
        ...

    def initial(self) -> Any:
        """The state before the first step, a pytree."""
        ...

    def shapes(self) -> Any:
        """Shapes, dtypes and shardings of that state, as `ShapeDtypeStruct`s, without what it is computed from."""
        ...

    def batch(self, step: int) -> Any:
        """The batch of `step`, counted from 0."""
        ...

    def rows(self, step: int) -> int:
        """The number of rows in the batch of `step`."""
        ...

    def advance(self, state: Any, step: int, batch: Any) -> tuple[Any, Mapping[str, jax.Array]]:
        """The state after `step`, and metrics, of which one is `loss`. `state` may be donated, but a `UserError` is
        raised before it is: the loop then saves it."""
        ...

    def evaluate(self, state: Any) -> Mapping[str, Any]:
        """Held-out figures, as JSON values."""
        ...

    def result(self, state: Any) -> Any:
        """What the run made, for `RunFinished`."""
        ...


def run_steps(
    run: RunSettings, training: Training, folder: Path, stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Trains in `folder`, from its newest checkpoint if it has one, and ends with `RunStopped` or `RunFinished`."""
    clock = Clock()
    with ExitStack() as stack:
        checkpoints = stack.enter_context(TrainingCheckpoints(folder, keep=run.keep))
        with clock.phase("init"):
            state, step, unreadable = _restore_or_initialise(training, checkpoints, clock)
        yield RunStarted(step, training.sources, unreadable)
        # The metrics are the same on all processes, and one writes them.
        log = stack.enter_context(MetricsLog(folder, step)) if is_first_process() else None
        timer = SaveTimer(run.checkpoint_minutes)
        agree = (lambda *votes: votes) if training.mesh is None else ProcessAgreement(training.mesh).ask
        last_saved = step
        while step < run.steps:
            started = time.perf_counter()
            with clock.phase("data"):
                batch = training.batch(step)
            with clock.phase("step"):
                try:
                    state, metrics = training.advance(state, step, batch)
                except UserError:
                    if step > last_saved:
                        if log is not None:
                            log.sync()
                        checkpoints.save(step, state, clock.to_json())
                        checkpoints.wait()
                    raise
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            speed = training.rows(step) / (time.perf_counter() - started)
            step += 1
            if log is not None and (step == 1 or step % run.log_every == 0 or step == run.steps):
                log.write("step", step, values)
            yield StepDone(step, values, speed, None)
            stopping, due = agree(stop(), timer.is_due())
            stopping = stopping and step < run.steps
            if stopping or due or step == run.steps or step % run.checkpoint_every == 0:
                if log is not None:
                    log.sync()
                with clock.phase("save"):
                    checkpoints.save(step, state, clock.to_json())
                last_saved = step
                timer.restart()
            if stopping:
                checkpoints.wait()
                yield CheckpointSaved(step)
                yield RunStopped(step, clock.to_json())
                return
            if (saved := checkpoints.finished()) is not None:
                yield CheckpointSaved(saved)
        with clock.phase("eval"):
            results = training.evaluate(state)
        if log is not None:
            log.write("evaluation", step, results)
        yield Evaluated(step, results)
        checkpoints.wait()
        yield RunFinished(step, training.result(state), clock.to_json())


def _restore_or_initialise(
    training: Training, checkpoints: TrainingCheckpoints, clock: Clock
) -> tuple[Any, int, tuple[tuple[int, str], ...]]:
    """(state, step, checkpoints that could not be read)."""
    restored = checkpoints.restore(training.shapes())
    if restored is None:
        return training.initial(), 0, ()
    clock.add(restored.clock)
    return restored.state, restored.step, restored.unreadable

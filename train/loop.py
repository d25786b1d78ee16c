"""The training loop, as a generator of events: it computes and saves, and whoever drives it shows.

A run killed at any moment goes on from its last checkpoint to the same parameters, bit for bit: a step's randomness and
its batch depend on (seed, step) alone. Several processes run the loop together, in step (`processes.py`).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.io.corpus import CorpusStore
from steerling_jax.io.training_checkpoint import RestoredCheckpoint, TrainingCheckpoints
from steerling_jax.training_step import Batch, Metrics, TrainState

from .data import training_examples
from .metrics import Clock, MetricsLog
from .processes import Agreement, Share, is_first
from .run_config import RunConfig
from .step import compile_step, init_state, shardings

Evaluate = Callable[[Any], Mapping[str, Any]]
MOST_SKIPPED = 50  # updates in a row


@dataclass(frozen=True)
class Restored:
    """Training goes on after `step`; `unreadable` are newer checkpoints that could not be read, with the reasons."""

    step: int
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Compiled:
    """The step is compiled, or was found in the compilation cache."""

    seconds: float


@dataclass(frozen=True)
class Step:
    """Step `step` (1 is the first) is done; told one step late, while the next one runs."""

    step: int
    metrics: Mapping[str, float]
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    step: int
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """The checkpoint of `step` is complete on disk."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """Asked to stop: everything up to `step` is saved."""

    step: int


@dataclass(frozen=True)
class Done:
    step: int
    params: Any
    clock: Mapping[str, Any]


Event = Restored | Compiled | Step | Evaluated | Saved | Stopped | Done


def train(
    run: RunConfig,
    store: CorpusStore,
    folder: Path,
    share: Share,
    *,
    evaluate: Evaluate | None = None,
    stop: Callable[[], bool] = lambda: False,
    tensorboard: bool = False,
) -> Iterator[Event]:
    """Trains in `folder` from its newest checkpoint, or from the start, and ends with `Stopped` or `Done`.

    `evaluate(params)` gives JSON values; `stop()` is asked after each step. Raises `UserError` for a full disk,
    unreadable checkpoints, or a loss that stays non-finite.
    """
    clock = Clock()
    with TrainingCheckpoints(folder, keep=run.keep) as checkpoints:
        with clock.phase("init"):
            state, found = _begin(run, share.mesh, checkpoints)
            start = 0 if found is None else found.step
            batches = _batches(run, store, share, start)
        if found is not None:
            clock.add(found.clock)
            yield Restored(start, found.unreadable)
        with MetricsLog(folder, start, tensorboard=tensorboard) if is_first() else nullcontext() as log:
            loop = _Loop(run, checkpoints, log, clock, evaluate, batches, state, start)
            agreement = Agreement(share.mesh)
            yield from loop.events(lambda: agreement.ask(stop()))


def _batches(run: RunConfig, store: CorpusStore, share: Share, first: int) -> Iterator[Batch]:
    """Batches from number `first` on, placed on the mesh."""
    data = run.data
    examples = training_examples(
        store, seq_len=data.seq_len, batch_size=data.batch_size, seed=run.seed, max_chunks=data.max_chunks,
        rows=share.rows, first_batch=first,
    )  # fmt: skip
    return map(share.place, examples)


def _begin(
    run: RunConfig, mesh: jax.sharding.Mesh, checkpoints: TrainingCheckpoints
) -> tuple[TrainState, RestoredCheckpoint | None]:
    """The state of the newest checkpoint, or a fresh one."""
    places = shardings(run, mesh)
    shapes = jax.eval_shape(partial(init_state, run))
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    found = checkpoints.restore(wanted)
    return jax.jit(partial(init_state, run), out_shardings=places)() if found is None else found.state, found


class _Loop:
    """The loop's variables, and one method for each thing it does."""

    def __init__(
        self,
        run: RunConfig,
        checkpoints: TrainingCheckpoints,
        log: MetricsLog | None,
        clock: Clock,
        evaluate: Evaluate | None,
        batches: Iterator[Batch],
        state: TrainState,
        step: int,
    ):
        self.run, self.checkpoints, self.log, self.clock, self.evaluate = run, checkpoints, log, clock, evaluate
        self.batches, self.state, self.step = batches, state, step
        self._late: tuple[int, Metrics] | None = None  # of the last step, not fetched yet
        self._busy: collections.deque[float] = collections.deque(maxlen=32)  # for tokens a second
        self._skipped, self._in_a_row = 0, 0

    def events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Everything up to `Done` or `Stopped`."""
        compiled = None
        while self.step < self.run.steps:
            with self.clock.phase("data"):
                batch = next(self.batches)
            if compiled is None:
                before = self.clock.seconds["compile"]
                with self.clock.phase("compile"):
                    compiled = compile_step(self.run, self.state, batch)
                yield Compiled(self.clock.seconds["compile"] - before)
            with self.clock.phase("step"):
                self.state, metrics = compiled(self.state, batch)
            yield from self._report()  # the step before this one, while this one runs
            self.step += 1
            self._late = (self.step, metrics)
            last = self.step == self.run.steps
            stopping = not last and stop()
            if last or self.step % self.run.eval_every == 0:
                yield from self._evaluate()
            if last or stopping or self.step % self.run.checkpoint_every == 0:
                yield from self._save()
            if (saved := self.checkpoints.finished()) is not None:
                yield Saved(saved)
            if stopping:
                yield from self._wait()
                yield Stopped(self.step)
                return
        yield from self._wait()
        yield Done(self.step, self.state.params, self.clock.to_json())

    def _report(self) -> Iterator[Step]:
        """Fetches the metrics of the step that is waiting for it, and writes them down."""
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        with self.clock.phase("step"):
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._busy.append(self.clock.seconds["data"] + self.clock.seconds["step"])
        span = self._busy[-1] - self._busy[0]
        speed = (len(self._busy) - 1) * self.run.tokens_per_step / span if span > 0 else 0.0
        if step == 1 or step % self.run.log_every == 0 or step == self.run.steps:
            numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._write("step", step, {**numbers, "tokens_per_second": round(speed, 1)})
        yield Step(step, values, speed)
        self._check(step, int(values["skipped"]))

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.log is not None:  # one process writes for all
            self.log.write(kind, step, values)

    def _check(self, step: int, skipped: int) -> None:
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self._in_a_row >= MOST_SKIPPED:
            raise UserError(
                f"The loss or its gradient has not been finite for {MOST_SKIPPED} steps (now step {step}): "
                "lower optimizer.peak_rate, or raise compute precision, and start in a new folder."
            )

    def _evaluate(self) -> Iterator[Event]:
        if self.evaluate is None:
            return
        yield from self._report()
        with self.clock.phase("eval"):
            results = dict(self.evaluate(self.state.params))
        self._write("evaluation", self.step, results)
        yield Evaluated(self.step, results)

    def _save(self) -> Iterator[Event]:
        # Lines first: a checkpoint must not be older than what is written about its steps, nor younger.
        yield from self._report()
        if self.log is not None:
            self.log.sync()
        yield from self._wait()
        with self.clock.phase("save"):
            self.checkpoints.save(self.step, self.state, self.clock.to_json())

    def _wait(self) -> Iterator[Saved]:
        with self.clock.phase("save"):
            saved = self.checkpoints.wait()
        if saved is not None:
            yield Saved(saved)

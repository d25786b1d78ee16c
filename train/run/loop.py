"""The training loop, as a generator of events: it computes and saves, and whoever drives it shows.

A run killed at any moment goes on from its last checkpoint to the same parameters, bit for bit: a step's randomness and
its batch depend on (seed, step) alone. Several processes run the loop together, in step (`processes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.training import TrainingCheckpoints
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.backbone import Params
from steerling_jax.objectives.training_step import Batch, Metrics, model_params
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.run.clock import Clock, Speed
from steerling_jax.train.run.events import (
    Began,
    Compiled,
    Done,
    Evaluated,
    Event,
    Profiled,
    Saved,
    Spike,
    Step,
    Stopped,
)
from steerling_jax.train.run.metrics import MetricsLog
from steerling_jax.train.run.processes import ProcessAgreement, ProcessShare, Timer, is_first
from steerling_jax.train.run.profiler import Profiler
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.start import InitialWeights, StartingPoint, begin
from steerling_jax.train.run.step import compile_step
from steerling_jax.train.run.watch import Watch

Evaluate = Callable[[Any], Mapping[str, Any]]


def train(
    run: RunConfig,
    store: CorpusStore,
    folder: Path,
    share: ProcessShare,
    *,
    other: InitialWeights | None = None,
    evaluate: Evaluate | None = None,
    stop: Callable[[], bool] = lambda: False,
    tensorboard: bool = False,
    profile: tuple[int, int] | None = None,
    batches: Batches | None = None,
) -> Iterator[Event]:
    """Trains in `folder` from its newest checkpoint, or from `other` weights, or from a fresh draw, and ends with
    `Stopped` or `Done`.

    `evaluate(params)` gives JSON values; `stop()` is asked after each step; `profile` are the first and the last step
    to trace; `batches` are those of this run and store, where they are open already. Raises `UserError` for a full
    disk, unreadable checkpoints, or a loss that stays non-finite.
    """
    clock = Clock()
    with ExitStack() as stack:
        checkpoints = stack.enter_context(TrainingCheckpoints(folder, keep=run.keep, keep_every=run.keep_every))
        with clock.phase("init"):
            begun = begin(run, share.mesh, checkpoints, folder, other)
            batches = batches or Batches(run, store)
            placed = batches.placed(share, begun.step)
        left = begun.step < run.steps
        if profile is not None and left and (profile[1] <= begun.step or profile[0] > run.steps):
            raise UserError(
                f"--profile asks for steps {profile[0]} to {profile[1]}, but {begun.step + 1} to {run.steps} are left: "
                "choose among them."
            )
        if begun.clock is not None:
            clock.add(begun.clock)
        # One process writes for all.
        log = stack.enter_context(MetricsLog(folder, begun.step, tensorboard=tensorboard)) if is_first() else None
        if log is not None and begun.step < run.steps:
            log.write("start", begun.step, {"order": begun.order, "unreadable": dict(begun.unreadable)})
        yield Began(begun.step, begun.order, begun.unreadable)
        profiler = stack.enter_context(closing(Profiler(profile, folder)))
        watch = Watch(batches, folder, skipped=int(jax.device_get(begun.state.skipped)))
        loop = _Loop(run, checkpoints, log, clock, evaluate, watch, profiler, placed, begun)
        yield from loop.events(ProcessAgreement(share.mesh), stop)


class _Loop:
    """The loop's variables, and one method for each thing it does."""

    def __init__(
        self,
        run: RunConfig,
        checkpoints: TrainingCheckpoints,
        log: MetricsLog | None,
        clock: Clock,
        evaluate: Evaluate | None,
        watch: Watch,
        profiler: Profiler,
        batches: Iterator[Batch],
        begun: StartingPoint,
    ):
        self.run, self.checkpoints, self.log, self.clock, self.evaluate = run, checkpoints, log, clock, evaluate
        self.watch, self.profiler, self.batches = watch, profiler, batches
        self.state, self.base, self.step = begun.state, begun.base, begun.step
        self.speed, self.timer = Speed(run, clock), Timer(run.checkpoint_minutes)
        self._late: tuple[int, Metrics] | None = None  # of the last step, not fetched yet

    def events(self, agreement: ProcessAgreement, stop: Callable[[], bool]) -> Iterator[Event]:
        """Everything up to `Done` or `Stopped`."""
        compiled = None
        while self.step < self.run.steps:
            with self.clock.phase("data"):
                batch = next(self.batches)
            if compiled is None:
                before = self.clock.seconds["compile"]
                with self.clock.phase("compile"):
                    compiled = compile_step(self.run, self.state, batch, self.base)
                yield Compiled(self.clock.seconds["compile"] - before)
            with self.clock.phase("step"), self.profiler.step(self.step + 1, self.state):
                self.state, metrics = compiled(self.state, batch, self.base)
            yield from self._report()  # the step before this one, while this one runs
            self.step += 1
            self._late = (self.step, metrics)
            last = self.step == self.run.steps
            stopping, due = agreement.ask(stop(), self.timer.rings())
            stopping = stopping and not last
            if self.profiler.finish(self.step, self.state, last=last or stopping):
                yield Profiled(self.profiler.folder)
            if stopping:  # who asks may not wait for an evaluation
                yield from self._save()
                yield from self._wait()
            if last or self.step % self.run.eval_every == 0:
                yield from self._evaluate()
            if not stopping and (last or due or self.step % self.run.checkpoint_every == 0):
                yield from self._save()
            if (saved := self.checkpoints.finished()) is not None:
                yield Saved(saved)
            if stopping:
                yield Stopped(self.step, self.clock.to_json())
                return
        yield from self._wait()
        yield Done(self.step, self._params(), self.clock.to_json())

    def _report(self) -> Iterator[Step | Spike]:
        """Fetches the metrics of the step that is waiting for it, and writes them down."""
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        with self.clock.phase("step"):
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.speed.step_done()
        if step == 1 or step % self.run.log_every == 0 or step == self.run.steps:
            self._write("step", step, {**values, **self.speed.to_json()})
        yield Step(step, values, self.speed.tokens_per_second, self.speed.mfu)
        spike = self.watch.look(step, values)
        if spike is not None:
            self._write("spike", step, {"loss": spike.loss, "median": spike.median, "sequences": spike.sequences})
            yield spike

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.log is not None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self.log.write(kind, step, finite)

    def _evaluate(self) -> Iterator[Event]:
        if self.evaluate is None:
            return
        yield from self._report()
        with self.clock.phase("eval"), jax.set_mesh(self.state.step.sharding.mesh):
            results = dict(self.evaluate(self._params()))
        self._write("evaluation", self.step, results)
        yield Evaluated(self.step, results)

    def _params(self) -> Params:
        """The model's, adapters merged."""
        return model_params(self.run, self.state.params, self.base)

    def _save(self) -> Iterator[Event]:
        # Lines first: a checkpoint must not be older than what is written about its steps, nor younger.
        yield from self._report()
        if self.log is not None:
            self.log.sync()
        yield from self._wait()
        with self.clock.phase("save"):
            self.checkpoints.save(self.step, self.state, self.clock.to_json())
        self.timer.restart()

    def _wait(self) -> Iterator[Saved]:
        with self.clock.phase("save"):
            saved = self.checkpoints.wait()
        if saved is not None:
            yield Saved(saved)

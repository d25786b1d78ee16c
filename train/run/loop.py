"""The training loop: a generator that computes and saves, and yields events for the program to display.

A run that is killed at any moment and started again reaches the same parameters, bit for bit: the batch and the random
numbers of a step depend on (seed, step) alone, and a checkpoint holds everything else. Several processes run the loop
together (`processes.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.training import TrainingCheckpoints
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.backbone import Params
from steerling_jax.objectives.training_step import Batch, Metrics, TrainState, evaluated_params, model_params
from steerling_jax.train.data.batches import Batches
from steerling_jax.train.run.clock import Clock, Speed
from steerling_jax.train.run.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpike,
    RunFinished,
    RunStarted,
    RunStopped,
    StepCompiled,
    StepDone,
    TraceWritten,
)
from steerling_jax.train.run.first_dictionary import makes_dictionary, with_dictionary
from steerling_jax.train.run.initial_weights import InitialWeights
from steerling_jax.train.run.loss_monitor import LossMonitor
from steerling_jax.train.run.metrics import MetricsLog
from steerling_jax.train.run.processes import ProcessAgreement, ProcessShare, SaveTimer, is_first_process
from steerling_jax.train.run.profiler import Profiler
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.starting_point import restore_or_initialise
from steerling_jax.train.run.step import compile_step

Evaluate = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class LoopOptions:
    """What the program that drives a run chooses, beside its config.

    initial: the parameters to start from (`RunConfig.start_from`); None for a random initialisation.
    evaluate: from the model's parameters to held-out figures, as JSON values; None for no evaluation.
    stop: called after each step; where it returns True, the run saves and stops.
    tensorboard: also write metrics for TensorBoard.
    profile: the first and the last step to trace with the profiler.
    batches: those of the run, where they are open already.
    """

    initial: InitialWeights | None = None
    evaluate: Evaluate | None = None
    stop: Callable[[], bool] = lambda: False
    tensorboard: bool = False
    profile: tuple[int, int] | None = None
    batches: Batches | None = None


def train(
    run: RunConfig, store: CorpusStore, folder: Path, share: ProcessShare, options: LoopOptions | None = None
) -> Iterator[Event]:
    """Trains in `folder`, from its newest checkpoint if it has one, and ends with `RunStopped` or `RunFinished`.

    Raises `UserError` for a full disk, unreadable checkpoints, a `profile` of steps that are done, or a loss that stays
    non-finite.
    """
    options = options or LoopOptions()
    clock = Clock()
    with ExitStack() as stack:
        checkpoints = stack.enter_context(TrainingCheckpoints(folder, keep=run.keep, keep_every=run.keep_every))
        with clock.phase("init"):
            start = restore_or_initialise(run, share.mesh, checkpoints, folder, options.initial)
            batches = options.batches or Batches(run, store)
            if start.step == 0 and makes_dictionary(run):
                state = with_dictionary(run, start.state, batches.placed(share, 0))
                start = dataclasses.replace(start, state=state)
            placed = batches.placed(share, start.step)
        _check_profile(options.profile, start.step, run.steps)
        if start.clock is not None:
            clock.add(start.clock)
        log = None
        if is_first_process():  # the metrics are the same on all processes, and one writes them
            log = stack.enter_context(MetricsLog(folder, start.step, tensorboard=options.tensorboard))
            if start.step < run.steps:
                log.write("start", start.step, {"order": start.sources, "unreadable": dict(start.unreadable)})
        yield RunStarted(start.step, start.sources, start.unreadable)
        loop = _Loop(
            run=run,
            options=options,
            checkpoints=checkpoints,
            log=log,
            clock=clock,
            monitor=LossMonitor(batches, folder, skipped=int(jax.device_get(start.state.skipped))),
            profiler=stack.enter_context(closing(Profiler(options.profile, folder))),
            batches=placed,
            speed=Speed(run, clock),
            save_timer=SaveTimer(run.checkpoint_minutes),
            state=start.state,
            base=start.base,
            step=start.step,
        )
        yield from loop.events(ProcessAgreement(share.mesh))


def _check_profile(profile: tuple[int, int] | None, done: int, steps: int) -> None:
    """A finished run ignores --profile, so that its command can be repeated."""
    if profile is not None and done < steps and (profile[1] <= done or profile[0] > steps):
        raise UserError(
            f"--profile asks for steps {profile[0]} to {profile[1]}, but steps {done + 1} to {steps} remain: choose "
            "some of these."
        )


@dataclass
class _Loop:
    """The variables of the loop, and one method for each thing it does."""

    run: RunConfig
    options: LoopOptions
    checkpoints: TrainingCheckpoints
    log: MetricsLog | None
    clock: Clock
    monitor: LossMonitor
    profiler: Profiler
    batches: Iterator[Batch]
    speed: Speed
    save_timer: SaveTimer
    state: TrainState
    base: Params | None
    step: int
    pending: tuple[int, Metrics] | None = None  # metrics of the last step, on the device

    def events(self, agreement: ProcessAgreement) -> Iterator[Event]:
        """Everything up to `RunFinished` or `RunStopped`."""
        compiled = None
        while self.step < self.run.steps:
            with self.clock.phase("data"):
                batch = next(self.batches)
            if compiled is None:
                # Only now: the shapes and shardings of a batch are known from the first one.
                before = self.clock.seconds["compile"]
                with self.clock.phase("compile"):
                    compiled = compile_step(self.run, self.state, batch, self.base)
                yield StepCompiled(self.clock.seconds["compile"] - before)
            with self.clock.phase("step"), self.profiler.step(self.step + 1, self.state):
                # Dispatches and returns. The state that goes in is donated, so nothing may use it afterwards.
                self.state, metrics = compiled(self.state, batch, self.base)
            # Fetching metrics waits for their step. Those of the step before are fetched while this one runs, so that
            # the device always has work.
            yield from self._report()
            self.step += 1
            self.pending = (self.step, metrics)
            last = self.step == self.run.steps
            stopping, save_due = agreement.ask(self.options.stop(), self.save_timer.is_due())
            stopping = stopping and not last
            if self.profiler.finish(self.step, self.state, last=last or stopping):
                yield TraceWritten(self.profiler.folder)
            if stopping:
                # A preempted machine may have half a minute left, less than an evaluation takes: save before it.
                yield from self._save()
                yield from self._wait_for_save()
            if last or self.step % self.run.eval_every == 0:
                yield from self._evaluate()
            if not stopping and (last or save_due or self.step % self.run.checkpoint_every == 0):
                yield from self._save()
            if (saved := self.checkpoints.finished()) is not None:
                yield CheckpointSaved(saved)
            if stopping:
                yield RunStopped(self.step, self.clock.to_json())
                return
        yield from self._wait_for_save()
        yield RunFinished(self.step, self._params(), self.clock.to_json())

    def _report(self) -> Iterator[StepDone | LossSpike]:
        """Fetches the pending metrics, writes them and checks the loss."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        with self.clock.phase("step"):
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.speed.step_done()
        if step == 1 or step % self.run.log_every == 0 or step == self.run.steps:
            self._write("step", step, {**values, **self.speed.to_json()})
        yield StepDone(step, values, self.speed.tokens_per_second, self.speed.mfu)
        spike = self.monitor.check(step, values)
        if spike is not None:
            self._write("spike", step, {"loss": spike.loss, "median": spike.median, "sequences": spike.sequences})
            yield spike

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line of metrics. JSON has no NaN and no infinity: they become null."""
        if self.log is not None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self.log.write(kind, step, finite)

    def _evaluate(self) -> Iterator[Event]:
        if self.options.evaluate is None:
            return
        yield from self._report()
        # Kernels are sharded by the mesh in the context, as in the compiled step.
        with self.clock.phase("eval"), jax.set_mesh(self.state.step.sharding.mesh):
            results = dict(self.options.evaluate(self._params()))
        self._write("evaluation", self.step, results)
        yield Evaluated(self.step, results)

    def _params(self) -> Params:
        """The parameters of the model, or their average, with adapters merged."""
        return model_params(self.run, evaluated_params(self.run, self.state), self.base)

    def _save(self) -> Iterator[Event]:
        """Starts to save; the save goes on in the background.

        metrics.jsonl is complete up to this step and on disk before the save starts. A run that is restored from this
        checkpoint does not repeat its steps, so lines that were still missing would be missing for ever; later lines
        are removed on restoring (`MetricsLog`).
        """
        yield from self._report()
        if self.log is not None:
            self.log.sync()
        yield from self._wait_for_save()  # of the previous checkpoint: one at a time
        with self.clock.phase("save"):
            self.checkpoints.save(self.step, self.state, self.clock.to_json())
        self.save_timer.restart()

    def _wait_for_save(self) -> Iterator[CheckpointSaved]:
        with self.clock.phase("save"):
            saved = self.checkpoints.wait()
        if saved is not None:
            yield CheckpointSaved(saved)

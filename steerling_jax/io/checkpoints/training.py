"""Checkpoints of a training run (Orbax v1): state and clock are saved and restored together.

    FOLDER/checkpoints/STEP/state      step, skipped, params, opt_state
    FOLDER/checkpoints/STEP/clock      seconds by phase, over restarts (JSON)
    FOLDER/checkpoints/STEP/digests-*  sizes and SHA-256 of the files (`digests.py`)

The position in the data needs no file: each step takes one batch, so it is `step`, for any number of processes. Several
processes call everything here together, with a folder that all of them see.

The order of writing makes a SIGKILL harmless at any moment:

1. All processes write state and clock into a folder with Orbax's temporary name. Killed here, the folder is no
   checkpoint; the next start removes it.
2. The first process renames the folder to STEP. A rename is atomic, so a folder named by a number is complete.
3. Orbax deletes the checkpoints that `keep` and `keep_every` do not preserve. Until then they are untouched, so at
   least one complete checkpoint exists at any time after the first save.
4. Each process writes its digests into STEP. Killed before that, the checkpoint loads, but is reported as unverified.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.checkpoints.digests import gather_damage, gather_problem, has_all_digests, write_digests
from steerling_jax.io.disk_errors import report_disk_errors

CHECKPOINTS = "checkpoints"
_RENAME_SECONDS = 60.0  # how long to wait for a network file system to show another host's rename


@dataclass(frozen=True)
class RestoredCheckpoint:
    """A restored checkpoint.

    unreadable: newer steps that were passed over, each with the reason. verified: the files were checked against their
    digests; False if the process ended before it had written them.
    """

    step: int
    state: Any
    clock: dict[str, Any]
    unreadable: tuple[tuple[int, str], ...]
    verified: bool


class TrainingCheckpoints:
    """The checkpoints of a training run; saves one at a time in the background. Use as a context manager.

    Keeps the newest `keep` checkpoints, and those whose step is a multiple of `keep_every`.
    """

    def __init__(self, folder: str | Path, *, keep: int, keep_every: int | None = None):
        self.folder = Path(folder).absolute() / CHECKPOINTS
        self._saving: tuple[int, Future[None]] | None = None
        self._background = ThreadPoolExecutor(1, "checkpoint")
        context = ocp.Context()
        context.checkpointables.registry = registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="clock")
        policies = ocp.training.preservation_policies
        with report_disk_errors(f"Cannot open {self.folder}"):
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_unfinished()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoints")
            rules: Any = [policies.LatestN(keep)]  # Orbax's own annotations do not agree with each other
            if keep_every is not None:
                rules.append(policies.EveryNSteps(keep_every))
            policy: Any = policies.AnyPreservationPolicy(rules)
            address: Any = self.folder
            self._checkpointer = ocp.training.Checkpointer(address, context=context, preservation_policy=policy)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # A failure while closing must not replace the exception that led here.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        self._background.shutdown()
        if kind and jax.process_index() == 0:
            self._remove_unfinished(seconds=1.0)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any, clock: Mapping[str, Any]) -> None:
        """Starts saving. On return, state and clock have been copied, so the caller may change or donate them.

        Waits for the save before this one. Raises `UserError` if one of the two fails because of the disk.
        """
        self.wait()
        items = {"state": state, "clock": dict(clock)}
        with self._report_save_errors(step):
            # `overwrite` deletes a checkpoint of this step. There can only be one that `restore` could not read and
            # passed over: a readable one would have been restored, and training would be past its step.
            response = self._checkpointer.save_checkpointables_async(step, items, force=True, overwrite=True)
            self._saving = (step, self._background.submit(self._finish, step, response))

    def _finish(self, step: int, response: Any) -> None:
        """Waits for Orbax, then writes the digests. Runs in the background thread."""
        response.result()
        folder, end = self.folder / str(step), time.monotonic() + _RENAME_SECONDS
        while not folder.is_dir() and time.monotonic() < end:
            time.sleep(0.1)
        write_digests(folder, jax.process_index(), jax.process_count())

    def finished(self) -> int | None:
        """The step whose save has finished since the last call, or None. Does not wait."""
        return None if self._saving is None or not self._saving[1].done() else self.wait()

    def wait(self) -> int | None:
        """Waits for the save in progress and returns its step; None if there was none."""
        if self._saving is None:
            return None
        (step, saved), self._saving = self._saving, None
        with self._report_save_errors(step):
            saved.result()
        return step

    def restore(self, state: Any) -> RestoredCheckpoint | None:
        """The newest readable checkpoint, or None if there is no checkpoint at all.

        Damaged checkpoints are passed over. A collective: all processes come to the same result.

        Args:
            state: shapes, dtypes and shardings of the state, as arrays or ShapeDtypeStructs.

        Raises:
            UserError: there are checkpoints but none can be read, or one is undamaged but cannot be loaded.
        """
        unreadable: list[tuple[int, str]] = []
        for step in reversed(self.steps):
            folder = self.folder / str(step)
            problem, loaded = gather_damage(folder), {}
            if problem is None:
                problem, loaded = self._load(step, state)
                # The problem is not in the files, but perhaps a lack of memory. Passing over this checkpoint would
                # lose it: training from an older one would overwrite it at the same step.
                if problem is not None and has_all_digests(folder):
                    raise UserError(
                        f"The checkpoint {folder} is undamaged but could not be loaded ({problem}): solve that and run "
                        "the same command again; or move it away to continue from the one before."
                    )
            if problem is None:
                verified = has_all_digests(folder)
                return RestoredCheckpoint(step, loaded["state"], loaded["clock"], tuple(unreadable), verified)
            unreadable.append((step, problem))
        if unreadable:
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (step {unreadable[0][0]}: {unreadable[0][1]}); "
                "move the folder away to train from the start."
            )
        return None

    def _load(self, step: int, state: Any) -> tuple[str | None, dict[str, Any]]:
        """(problem, {clock, state}); the problem may be another process's."""
        problem, loaded = None, {}
        try:
            # Two calls: when one of several items fails, Orbax leaves the coroutines of the others unfinished.
            for name, target in {"clock": None, "state": jax.tree.map(_abstract, state)}.items():
                loaded |= self._checkpointer.load_checkpointables(step, {name: target})
        except Exception as error:  # damage takes many forms: missing files, invalid JSON, failed decoding
            problem = error_summary(error)
        return gather_problem(problem), loaded

    @contextlib.contextmanager
    def _report_save_errors(self, step: int) -> Iterator[None]:
        try:
            with report_disk_errors(f"The checkpoint of step {step} could not be saved in {self.folder}"):
                yield
        except BaseException:
            self._saving = None
            raise

    def _remove_unfinished(self, seconds: float = 0.0) -> None:
        """Removes folders with Orbax's temporary names, left by a killed or failed save.

        After a save that has just failed, Orbax's threads may still create files there: repeats for `seconds`.
        """
        end = time.monotonic() + seconds
        while True:
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            if time.monotonic() >= end:
                return
            time.sleep(0.1)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

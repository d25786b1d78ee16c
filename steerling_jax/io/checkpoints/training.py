"""Checkpoints of a training run (Orbax v1): state and clock are saved, and come back, as one.

    FOLDER/checkpoints/STEP/state      step, skipped, params, opt_state
    FOLDER/checkpoints/STEP/clock      seconds by phase, over restarts (JSON)
    FOLDER/checkpoints/STEP/digests-*  what the files must be, written last (`digests.py`)

The place in the data needs no file: a step takes one batch, so it is `step`, on any number of processes. Several
processes call everything here together, with a folder that all of them see. Orbax writes under a temporary name and
renames, so that a folder named by its step is whole.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError, first_line
from steerling_jax.io.checkpoints.digests import anyone, damage_for_anyone, has_all_digests, write_digests
from steerling_jax.io.disk import told

CHECKPOINTS = "checkpoints"
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class RestoredCheckpoint:
    """What came back. `unreadable`: newer steps that were passed over, each with the reason. `verified`: the files are
    what was saved; False where the process ended before it had written their digests."""

    step: int
    state: Any
    clock: dict[str, Any]
    unreadable: tuple[tuple[int, str], ...]
    verified: bool


class TrainingCheckpoints:
    """The newest `keep` checkpoints under `folder`, and those whose step is a multiple of `keep_every`. One save at a
    time, in the background. Use as a context."""

    def __init__(self, folder: str | Path, *, keep: int, keep_every: int | None = None):
        self.folder = Path(folder).absolute() / CHECKPOINTS
        self._saving: tuple[int, Future[None]] | None = None
        self._background = ThreadPoolExecutor(1, "checkpoint")
        context = ocp.Context()
        context.checkpointables.registry = registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="clock")
        policies = ocp.training.preservation_policies
        with told(f"Cannot open {self.folder}"):
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_debris()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoints")
            kept: Any = [policies.LatestN(keep)]  # Orbax's own annotations do not agree with each other
            if keep_every is not None:
                kept.append(policies.EveryNSteps(keep_every))
            kept, place = policies.AnyPreservationPolicy(kept), cast(Any, self.folder)
            self._checkpointer = ocp.training.Checkpointer(place, context=context, preservation_policy=kept)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # A failure on the way out must not hide the one that led here.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        self._background.shutdown()
        if kind and jax.process_index() == 0:
            self._remove_debris(patience=1.0)

    @property
    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any, clock: Mapping[str, Any]) -> None:
        """Starts saving. On return everything is copied, so the caller may go on and change it all.

        Raises `UserError` when this save, or the one before it, met a full or forbidden disk.
        """
        self.wait()
        items = {"state": state, "clock": dict(clock)}
        with self._failing(step):
            # A checkpoint of this step can only be one that was unreadable on restoring.
            response = self._checkpointer.save_checkpointables_async(step, items, force=True, overwrite=True)
            self._saving = (step, self._background.submit(self._finish, step, response))

    def _finish(self, step: int, response: Any) -> None:
        response.result()
        folder, end = self.folder / str(step), time.monotonic() + _PATIENCE
        while not folder.is_dir() and time.monotonic() < end:  # on a network disk another host's rename shows late
            time.sleep(0.1)
        write_digests(folder, jax.process_index(), jax.process_count())

    def finished(self) -> int | None:
        """The step whose save has come to its end since the last call, if any. Does not wait."""
        return None if self._saving is None or not self._saving[1].done() else self.wait()

    def wait(self) -> int | None:
        """Waits for the save under way; its step, or None if there was none."""
        if self._saving is None:
            return None
        (step, saved), self._saving = self._saving, None
        with self._failing(step):
            saved.result()
        return step

    def restore(self, state: Any) -> RestoredCheckpoint | None:
        """The newest readable checkpoint, or None where there is none at all.

        `state` gives shapes, dtypes and shardings (arrays or ShapeDtypeStructs). Raises `UserError` when there are
        checkpoints but none can be read, and where one is whole but cannot be loaded.
        """
        unreadable: list[tuple[int, str]] = []
        for step in reversed(self.steps):
            place, found = self.folder / str(step), {}
            trouble = damage_for_anyone(place)
            if trouble is None:
                try:
                    # One after the other: in one call, Orbax would leave coroutines behind when one of them fails.
                    for name, item in {"clock": None, "state": jax.tree.map(_abstract, state)}.items():
                        found |= self._checkpointer.load_checkpointables(step, {name: item})
                except Exception as error:  # whatever damage does: missing files, bad JSON, failed decoding
                    trouble = first_line(error)
                trouble = anyone(trouble)
                # Its files are those that were saved: passed over, it would be saved anew, and be lost.
                if trouble is not None and has_all_digests(place):
                    raise UserError(
                        f"The checkpoint {place} is whole but could not be loaded ({trouble}): mend that, and the same "
                        "command goes on from it; or move it away to go on from the one before."
                    )
            if trouble is None:
                return RestoredCheckpoint(
                    step, found["state"], found["clock"], tuple(unreadable), has_all_digests(place)
                )
            unreadable.append((step, trouble))
        if unreadable:
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (step {unreadable[0][0]}: {unreadable[0][1]}); "
                "move the folder away to train from the start."
            )
        return None

    @contextlib.contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        try:
            with told(f"The checkpoint of step {step} could not be saved in {self.folder}"):
                yield
        except BaseException:
            self._saving = None
            raise

    def _remove_debris(self, patience: float = 0.0) -> None:
        """What a killed or failed save left behind, under Orbax's temporary names.

        A save that failed just now may have other writes under way: for `patience` seconds, looks again.
        """
        end = time.monotonic() + patience
        while True:
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            if time.monotonic() >= end:
                return
            time.sleep(0.1)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

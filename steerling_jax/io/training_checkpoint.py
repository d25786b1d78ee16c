"""Checkpoints of a training run (Orbax v1): state and clock are saved, and come back, as one.

    FOLDER/run.json                    kind "training", format version, the run, the model's config, the corpus
    FOLDER/checkpoints/STEP/state      step, skipped, params, opt_state
    FOLDER/checkpoints/STEP/clock      seconds by phase, over restarts (JSON)

The place in the data needs no file: a step takes one batch, so it is `step`, on any number of processes. Several
processes call everything here together, with a folder that all of them see. Orbax writes under a temporary name and
renames, so that a folder named by its step is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import write_json
from steerling_jax.io.checkpoint import FORMAT_VERSION, RUN_FILE
from steerling_jax.io.disk import disk_trouble

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RestoredCheckpoint:
    """What came back. `unreadable`: newer steps that were passed over, each with the reason."""

    step: int
    state: Any
    clock: dict[str, Any]
    unreadable: tuple[tuple[int, str], ...]


class TrainingCheckpoints:
    """The newest `keep` checkpoints under `folder`. One save at a time, in the background. Use as a context."""

    def __init__(self, folder: str | Path, *, keep: int):
        self.folder = Path(folder).absolute() / CHECKPOINTS
        self._saving: tuple[int, Any] | None = None
        context = ocp.Context()
        context.checkpointables.registry = registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="clock")
        policies = ocp.training.preservation_policies
        with _told(f"Cannot open {self.folder}"):
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_debris()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoints")
            newest: Any = policies.LatestN(keep)  # Orbax's own annotations do not agree with each other
            place: Any = self.folder
            self._checkpointer = ocp.training.Checkpointer(place, context=context, preservation_policy=newest)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # A failure on the way out must not hide the one that led here.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        with contextlib.suppress(Exception):
            self._checkpointer.close()
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
            self._saving = (step, response)

    def finished(self) -> int | None:
        """The step whose save has come to its end since the last call, if any. Does not wait."""
        if self._saving is None or self._checkpointer.is_saving_in_progress():
            return None
        return self.wait()

    def wait(self) -> int | None:
        """Waits for the save under way; its step, or None if there was none."""
        if self._saving is None:
            return None
        (step, response), self._saving = self._saving, None
        with self._failing(step):
            response.result()
        return step

    def restore(self, state: Any) -> RestoredCheckpoint | None:
        """The newest readable checkpoint, or None where there is none at all.

        `state` gives shapes, dtypes and shardings (arrays or ShapeDtypeStructs). Raises `UserError` when there are
        checkpoints but none can be read.
        """
        unreadable: list[tuple[int, str]] = []
        # One after the other: in one call, Orbax would leave coroutines behind when one of them fails.
        wanted = {"clock": None, "state": jax.tree.map(_abstract, state)}
        for step in reversed(self.steps):
            found: dict[str, Any] = {}
            try:
                for name, item in wanted.items():
                    found |= self._checkpointer.load_checkpointables(step, {name: item})
            except Exception as error:  # whatever damage does: missing files, bad JSON, failed decoding
                unreadable.append((step, _first_line(error)))
                continue
            return RestoredCheckpoint(step, found["state"], found["clock"], tuple(unreadable))
        if unreadable:
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (step {unreadable[0][0]}: {unreadable[0][1]}); "
                "move the folder away to train from the start."
            )
        return None

    @contextlib.contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        try:
            with _told(f"The checkpoint of step {step} could not be saved in {self.folder}"):
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


def write_run(folder: str | Path, *, run: Mapping[str, Any], corpus: Mapping[str, Any]) -> None:
    """Writes `run.json`: `run` as `RunConfig.to_json` gives it, `corpus` whatever identifies its content."""
    value = {"kind": "training", "format_version": FORMAT_VERSION, "model": run["model"], "run": run, "corpus": corpus}
    write_json(Path(folder) / RUN_FILE, value)


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """`run.json` of a training folder, None where there is none. Raises `UserError` if it is not one we can read."""
    path = Path(folder) / RUN_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        kind, version = value["kind"], value["format_version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}); choose another folder with --out.") from error
    if kind != "training" or version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of kind {kind!r}, format {version}, not a training run of format {FORMAT_VERSION}; "
            "choose another folder with --out."
        )
    return value


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Holds the training folder for this process; the kernel lets go of it however the process ends."""
    folder = Path(folder)
    with _told(f"Cannot write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another process is training in {folder}; wait for it, or choose another folder with --out."
            ) from None
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before anything was written
                (folder / ".lock").unlink()
                folder.rmdir()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns what a full or forbidden disk raises, in Python or inside Orbax and TensorStore, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(
            f"{what}: {reason}; free some space or choose another place, then run the same command again."
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")

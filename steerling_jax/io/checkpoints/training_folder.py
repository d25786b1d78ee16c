"""A training folder's `run.json`, and the lock that excludes a second run.

FOLDER/run.json     kind "training", format version, the run, the model's config, the corpus; for a run that began
                    with another model's parameters, where they came from
FOLDER/.lock        locked while a process trains in the folder
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.checkpoints.parameters import FORMAT_VERSION, RUN_FILE
from steerling_jax.io.disk_errors import report_disk_errors
from steerling_jax.io.file_lock import lock_file
from steerling_jax.io.json_files import write_json
from steerling_jax.io.text_files import load_json


def write_run(folder: str | Path, *, run: Mapping[str, Any], corpus: Mapping[str, Any]) -> None:
    """Writes `run.json`: `run` as `RunConfig.to_json` returns it, `corpus` the fields that identify its content."""
    value = {"kind": "training", "format_version": FORMAT_VERSION, "model": run["model"], "run": run, "corpus": corpus}
    write_json(Path(folder) / RUN_FILE, value)


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """Reads `run.json` of a training folder; None if there is none.

    Raises `UserError` if it is damaged, of another kind or of another format version.
    """
    path = Path(folder) / RUN_FILE
    try:
        value = load_json(path.read_bytes())
        kind, version = value["kind"], value["format_version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error_summary(error)}); choose another folder with --out.") from error
    if kind != "training" or version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of kind {kind!r}, format {version}, not a training run of format {FORMAT_VERSION}; "
            "choose another folder with --out."
        )
    return value


def check_start(folder: str | Path, start: Mapping[str, str]) -> None:
    """Raises `UserError` if the run began with other weights than `start` (keys `folder` and `fingerprint`)."""
    before = (read_run(folder) or {}).get("start")
    if before is not None and before["fingerprint"] != start["fingerprint"]:
        raise UserError(
            f"{folder} began with {before['folder']}, fingerprint {before['fingerprint']}, but {start['folder']} now "
            f"has {start['fingerprint']}: restore the model, or choose another folder with --out."
        )


def record_start(folder: str | Path, start: Mapping[str, str]) -> None:
    """Adds `start`, the origin of the initial weights, to `run.json` if there is one."""
    value = read_run(folder)
    if value is not None:
        write_json(Path(folder) / RUN_FILE, {**value, "start": dict(start)})


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Locks the training folder for this process, creating it if needed.

    Two runs in one folder would delete each other's checkpoints. The kernel releases the lock however the process
    ends, so a killed run leaves no stale lock. Raises `UserError` if another process holds the lock, or the file system
    cannot lock.
    """
    folder = Path(folder)
    with report_disk_errors(f"Cannot write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        busy = f"Another process is training in {folder}; wait for it, or choose another folder with --out."
        lock_file(lock, str(folder), "--out", busy)
        try:
            yield
        finally:
            # A run that was refused before it wrote anything leaves no folder behind.
            if [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()

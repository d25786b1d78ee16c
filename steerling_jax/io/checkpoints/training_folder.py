"""A training folder's `run.json`, and the lock that keeps a second run out.

FOLDER/run.json     kind "training", format version, the run, the model's config, the corpus; where the parameters
                    of step 0 came from, if not from a draw
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError, first_line
from steerling_jax.io.atomic import write_json
from steerling_jax.io.checkpoints.parameters import FORMAT_VERSION, RUN_FILE
from steerling_jax.io.disk import told


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
        raise UserError(f"{path} cannot be read ({first_line(error)}); choose another folder with --out.") from error
    if kind != "training" or version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of kind {kind!r}, format {version}, not a training run of format {FORMAT_VERSION}; "
            "choose another folder with --out."
        )
    return value


def check_start(folder: str | Path, start: Mapping[str, str]) -> None:
    """Raises `UserError` where the run began with other weights than `start` (keys `folder` and `fingerprint`)."""
    before = (read_run(folder) or {}).get("start")
    if before is not None and before["fingerprint"] != start["fingerprint"]:
        raise UserError(
            f"{folder} began with {before['folder']}, fingerprint {before['fingerprint']}, but {start['folder']} now "
            f"has {start['fingerprint']}: restore the model, or choose another folder with --out."
        )


def remember_start(folder: str | Path, start: Mapping[str, str]) -> None:
    """Writes `start` into `run.json`, where there is one."""
    value = read_run(folder)
    if value is not None:
        write_json(Path(folder) / RUN_FILE, {**value, "start": dict(start)})


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Holds the training folder for this process; the kernel lets go of it however the process ends."""
    folder = Path(folder)
    with told(f"Cannot write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is training in {folder}; wait for it, or choose another folder with --out."
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder} cannot be locked ({error.strerror}), so that two runs might write there: mount its disk "
                "with locks (NFS: lockd; Lustre: flock), or choose another folder with --out."
            ) from None
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before anything was written
                (folder / ".lock").unlink()
                folder.rmdir()

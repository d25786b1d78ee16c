"""The output of a batch: results as JSON, one object a line, each appended as soon as its text is finished.

A process that is killed leaves complete lines and at most one that is cut off. The file itself is therefore the record
of what is finished: `repair` removes what has to be done again and returns the ids of the rest.

A pipe or a device (`/dev/stdout`) cannot be read back. Results are written to it as they are finished, and every
request is processed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.infer.batch.request_file import Id
from steerling_jax.io.atomic import atomic_path, resolve_output, write_whole
from steerling_jax.io.file_lock import lock_file
from steerling_jax.io.text_files import load_json

Append = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[tuple[set[Id], Append]]:
    """Yields the ids of the results that `path` already has, and a function that appends one result.

    Raises `UserError` where the file cannot be used, holds anything but results, or is the output of another process.
    """
    output = resolve_output(path)
    if not output.is_stream:
        with _lock(path, output.path):
            yield repair(path), lambda value: _append_to_file(path, value)
        return

    # Open for the whole run: a reader of a FIFO would take a closed stream for the end of the results.
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(output.open_stream())
        except OSError as error:
            raise _cannot_write(path, error) from None

        def append(value: dict[str, Any]) -> None:
            try:
                write_whole(stream, _line(value))
            except OSError as error:
                if isinstance(error, BrokenPipeError) and output.descriptor is not None:
                    raise  # as for all other output to a descriptor whose reader has exited
                raise _cannot_write(path, error) from None

        yield set(), append


@contextlib.contextmanager
def _lock(path: Path, resolved: Path) -> Iterator[None]:
    """Locks the results for this process: two runs would each write the results of all requests.

    The lock is a file of its own, since `repair` replaces the results. A killed process leaves this file behind,
    unlocked. path: as it was given, for errors. resolved: with symbolic links resolved.
    """
    busy = f"Another process is writing results to {path}; wait for it, or choose another file with --output."
    name = resolved.with_name(f".{resolved.name}.lock")
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
        file = name.open("w")
    except OSError as error:
        raise _cannot_use(path, error) from None
    with file:
        lock_file(file, str(path), "--output", busy)
        # A process that has just ended may have removed this file, so that a third one locks another of this name.
        if not name.exists() or not os.path.samestat(os.fstat(file.fileno()), name.stat()):
            raise UserError(busy)
        try:
            yield
        finally:
            name.unlink(missing_ok=True)


def _append_to_file(path: Path, value: dict[str, Any]) -> None:
    """Appends one line in a single write, so that a killed process can only cut off the last line."""
    try:
        with path.open("ab") as file:
            file.write(_line(value))
    except OSError as error:
        raise _cannot_write(path, error) from None


def _line(value: dict[str, Any]) -> bytes:
    # A text can contain a lone surrogate, which UTF-8 cannot encode but JSON can, as \udXXX.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path}: {error.strerror}; free some space, then run the command again.")


def _cannot_use(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot use {path} for results: {error.strerror}; choose another file.")


def repair(path: Path) -> set[Id]:
    """Ids of the results in `path`, which is created if it does not exist.

    Lines with an error are removed, since their requests may have been corrected and are tried again; so is a last line
    that was cut off. Raises `UserError` where the file cannot be used or holds anything but results.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("rb") as file:
            ids = {number: _finished_id(path, number, text) for number, text in enumerate(file, start=1)}
        # The file is replaced only after every line was recognised, so that a wrong --output is never overwritten.
        if None in ids.values():
            with atomic_path(path) as target, target.open("wb") as out, path.open("rb") as file:
                out.writelines(text for number, text in enumerate(file, start=1) if ids[number] is not None)
    except OSError as error:
        raise _cannot_use(path, error) from None
    return {id for id in ids.values() if id is not None}


def _finished_id(path: Path, number: int, text: bytes) -> Id | None:
    """The id of a result; None for an error or a line that was cut off."""
    if not text.endswith(b"\n"):
        return None
    try:
        value = load_json(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and ("error" in value or ("text" in value and isinstance(value.get("id"), Id))):
        return None if "error" in value else value["id"]
    raise UserError(f"{path}, line {number} is not a result of a batch: give another --output, or delete the line.")

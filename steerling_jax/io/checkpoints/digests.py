"""Digests of what was saved: Orbax's array data carries no checksums, and a flipped bit there comes back as a number.

    FOLDER/digests-I-of-N.json     process I of N: its files' sizes and SHA-256, by path inside the folder

Written last, so a folder that lacks some of them was cut off in between; whole it is all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from steerling_jax.io.atomic import write_json

_OWN = re.compile(r"digests-(\d+)-of-(\d+)\.json")
_WRITER = re.compile(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)")  # so Orbax calls what one process wrote


def write_digests(folder: Path, process: int = 0, processes: int = 1) -> None:
    """Reads this process's share of the files in `folder` and writes down their digests. Each process calls it, once
    all files are there. Raises OSError or `UserError` where that fails, as where there is no such folder."""
    files = {name: _digest(folder / name) for name in _names(folder) if _reader(name, processes) == process}
    write_json(folder / f"digests-{process}-of-{processes}.json", files)


def damage_for_anyone(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None: the same answer for all processes, which share the reading.
    A collective."""
    return anyone(find_damage(folder, jax.process_index(), jax.process_count()))


def anyone(trouble: str | None) -> str | None:
    """A trouble that this or any other process has. A collective."""
    if jax.process_count() == 1:
        return trouble
    flags = np.asarray(multihost_utils.process_allgather(np.array(trouble is not None)))
    return trouble or (f"process {np.argmax(flags)} cannot read it" if flags.any() else None)


def find_damage(folder: Path, process: int = 0, processes: int = 1) -> str | None:
    """What is wrong with the files of this process's share, in words, or None. Several processes share the reading,
    however many there were when it was saved."""
    for path in _digest_files(folder):
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            for name, (size, sha256) in listed.items():
                if _reader(name, processes) == process and (trouble := _trouble(folder / name, size, sha256)):
                    return f"{name} {trouble}"
        except (ValueError, AttributeError, TypeError):
            return f"{path.name} is damaged"
    return None


def has_all_digests(folder: Path) -> bool:
    """Whether every process had written its own."""
    found = [match.groups() for path in _digest_files(folder) if (match := _OWN.fullmatch(path.name))]
    return bool(found) and len(found) == int(found[0][1])


def _digest_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _OWN.fullmatch(path.name))


def _names(folder: Path) -> Iterator[str]:
    folder.stat()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.lstrip(".").startswith("digests-"):
            yield name


def _reader(name: str, processes: int) -> int:
    """Which process reads a file: the one that wrote it, whose memory may still have it; else the first."""
    writer = _WRITER.search(name)
    return int(writer[1]) % processes if writer else 0


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _trouble(path: Path, size: int, sha256: str) -> str | None:
    try:
        there, digest = _digest(path)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    if there != size:
        return f"has {there} bytes instead of {size}"
    return None if digest == sha256 else "is not what was saved: its SHA-256 differs"

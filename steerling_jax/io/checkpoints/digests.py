"""SHA-256 digests of a checkpoint's files, which detect damage that Orbax would not notice.

Orbax's array data (OCDBT) carries no checksum of the values: after a flipped bit, the array loads without an error and
holds another number.

    FOLDER/digests-I-of-N.json     process I of N: the sizes and SHA-256 of its files, by path inside the folder

The digests are written last, after Orbax has renamed the folder to its final name. So a folder that lacks some of them
is complete, but was interrupted between the two; it can be loaded, unverified.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from steerling_jax.io.json_files import write_json
from steerling_jax.io.text_files import load_json

_DIGEST_FILE = re.compile(r"digests-(\d+)-of-(\d+)\.json")
_PROCESS_FILE = re.compile(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)")  # how Orbax names what one process wrote


def write_digests(folder: Path, process: int = 0, processes: int = 1) -> None:
    """Writes the digests of this process's share of the files in `folder`.

    Every process calls it once all files exist. Raises `OSError` or `UserError` if a file cannot be read or written.
    """
    files = {name: _digest(folder / name) for name in _file_names(folder) if _reader(name, processes) == process}
    write_json(folder / f"digests-{process}-of-{processes}.json", files)


def gather_damage(folder: Path) -> str | None:
    """What is damaged in a checkpoint, or None. A collective: all processes share the reading and agree on whether
    there is damage."""
    return gather_problem(find_damage(folder, jax.process_index(), jax.process_count()))


def gather_problem(problem: str | None) -> str | None:
    """The problem of this process or, if it has none, a word on the first process that has one. A collective.

    Processes must take the same decision about a checkpoint: if one passed over it while another loaded it, they would
    continue from different steps, or wait for each other forever.
    """
    if jax.process_count() == 1:
        return problem
    flags = np.asarray(multihost_utils.process_allgather(np.array(problem is not None)))
    return problem or (f"process {np.argmax(flags)} cannot read it" if flags.any() else None)


def find_damage(folder: Path, process: int = 0, processes: int = 1) -> str | None:
    """What is damaged in this process's share of the files, or None.

    The number of processes need not be that at the time of saving.
    """
    for path in _digest_files(folder):
        try:
            expected = load_json(path.read_bytes())
            for name, (size, sha256) in expected.items():
                if _reader(name, processes) == process and (problem := _file_damage(folder / name, size, sha256)):
                    return f"{name} {problem}"
        except (ValueError, AttributeError, TypeError):
            return f"{path.name} is damaged"
    return None


def has_all_digests(folder: Path) -> bool:
    """Whether every process wrote its digests, so that `find_damage` covers all files."""
    digests = [match.groups() for path in _digest_files(folder) if (match := _DIGEST_FILE.fullmatch(path.name))]
    return bool(digests) and len(digests) == int(digests[0][1])


def _digest_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _DIGEST_FILE.fullmatch(path.name))


def _file_names(folder: Path) -> Iterator[str]:
    folder.stat()  # raises if there is no such folder, where `os.walk` would yield nothing
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            # Other processes write their digests meanwhile, in temporary folders with a leading dot. These may be gone
            # before they can be listed, so they must not be entered: an error here ends this process alone, and the
            # others would wait for it in the next collective.
            folders[:] = [name for name in folders if not _is_digests(name)]
            names = [name for name in names if not _is_digests(name)]
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _is_digests(name: str) -> bool:
    return name.lstrip(".").startswith("digests-")


def _reader(name: str, processes: int) -> int:
    """Which process reads a file: the one that wrote it, whose page cache may still hold it; otherwise the first."""
    writer = _PROCESS_FILE.search(name)
    return int(writer[1]) % processes if writer else 0


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, file_digest(file, "sha256").hexdigest()


def _file_damage(path: Path, size: int, sha256: str) -> str | None:
    try:
        actual_size, actual_sha256 = _digest(path)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    if actual_size != size:
        return f"has {actual_size} bytes instead of {size}"
    return None if actual_sha256 == sha256 else "is not what was saved: its SHA-256 differs"

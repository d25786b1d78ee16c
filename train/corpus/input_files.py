"""Finds the files of a source: paths, folders and patterns, local or remote."""

from __future__ import annotations

import glob
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.storage import file_system
from steerling_jax.train.corpus.sources import TextSource

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".bz2", ".xz")


@dataclass(frozen=True)
class InputFile:
    """A file that exists.

    address: its path or URL. label: its name relative to the folder or pattern that matched it. stamp: changes when the
    content changes: an entity tag, a hash or a modification time, as the file system provides.
    """

    address: str
    label: str
    size: int
    stamp: str

    @property
    def format(self) -> str | None:
        """Format "text", "jsonl" or "parquet", by the file's name; None for other files."""
        return FORMATS.get(self._uncompressed_name.suffix.lower())

    @property
    def is_compressed(self) -> bool:
        return self._uncompressed_name.name != PurePosixPath(self.label).name

    @property
    def _uncompressed_name(self) -> PurePosixPath:
        name = PurePosixPath(self.label)
        return name.with_suffix("") if name.suffix in COMPRESSIONS else name


def source_files(source: TextSource) -> list[InputFile]:
    """The source's files in a supported format, sorted by address.

    Raises `UserError` if there are none, and for files that cannot be listed.
    """
    files: dict[str, InputFile] = {}
    for name in source.files:
        for file in _matching_files(name):
            files.setdefault(file.address, file)
    supported = [file for file in sorted(files.values(), key=lambda file: file.address) if file.format]
    if not supported:
        raise UserError(
            f"{', '.join(source.files)} contains no documents: add .txt, .jsonl (or .jsonl.gz) or .parquet files."
        )
    return supported


def _matching_files(name: str) -> list[InputFile]:
    """All files that a path, folder or pattern matches."""
    if "://" not in name:
        name = str(Path(name).absolute())
    try:
        system, path = file_system(name)
        # `base` is removed from the files' paths to give their labels: the folder, or a pattern's part without
        # wildcards.
        if glob.has_magic(path):
            base = path[: path.rindex("/", 0, _first_wildcard(path)) + 1] if "/" in path else ""
            entries = system.glob(path, detail=True)
        elif system.isdir(path):
            base, entries = path.rstrip("/") + "/", system.find(path, detail=True)
        elif system.exists(path):
            base, entries = path[: path.rindex("/") + 1], {path: system.info(path)}
        else:
            raise UserError(f"{name} is not a folder or a file: give one that contains .txt, .jsonl or .parquet files.")
    except (ImportError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error
    is_local = "://" not in name
    files = []
    for entry, info in entries.items():
        info = _link_target(entry) if info.get("islink") else info
        if info["type"] == "file":
            address = entry if is_local else system.unstrip_protocol(entry)
            files.append(InputFile(address, entry.removeprefix(base), info["size"], _stamp(info)))
    return files


def _link_target(path: str) -> dict[str, Any]:
    """Type, size and modification time of a symbolic link's target, as fsspec gives them for files.

    Raises `UserError` for a link to a folder, because such links can form cycles, and for a broken link to a file in
    a supported format.
    """
    try:
        about = Path(path).stat()
    except OSError as error:
        if InputFile(path, path, 0, "").format is None:
            return {"type": "other"}
        raise UserError(f"{path} is a broken link ({error.strerror}): repair it, or remove it.") from error
    if stat.S_ISDIR(about.st_mode):
        raise UserError(
            f"{path} is a link to a folder, which is not followed: name the folder itself, and remove the link."
        )
    kind = "file" if stat.S_ISREG(about.st_mode) else "other"
    return {"type": kind, "size": about.st_size, "mtime": about.st_mtime}


def _first_wildcard(path: str) -> int:
    return min(at for at in map(path.find, "*?[") if at >= 0)


def _stamp(info: dict[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), ""))

"""Finds the files of a source: paths, folders and patterns, local or remote."""

from __future__ import annotations

import glob
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.storage import file_system
from steerling_jax.train.corpus.sources import TextSource

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_NAMES = ".txt, .jsonl, .ndjson or .parquet files, also compressed (.jsonl.gz, .bz2, .xz, .zst)"


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
        return name.with_suffix("") if name.suffix.lower() in COMPRESSIONS else name


def source_files(source: TextSource) -> list[InputFile]:
    """The source's files in a supported format, sorted by address.

    Files of folders and patterns in other formats are left out (see `left_out_files`), and so are hidden ones. Raises
    `UserError` for a file that is named itself and has another format, for a name without any document, and for files
    that cannot be listed.
    """
    files: dict[str, InputFile] = {}
    for name in source.files:
        documents = [file for file in _matching_files(name) if file.format]
        if not documents:
            raise UserError(f"{name} contains no documents: add {_NAMES}.")
        for file in documents:
            files.setdefault(file.address, file)
    return sorted(files.values(), key=lambda file: file.address)


def left_out_files(sources: Iterable[TextSource]) -> list[str]:
    """The addresses of files in the sources' folders and patterns that are not documents, without hidden ones."""
    names = {name for source in sources for name in source.files}
    return sorted({file.address for name in names for file in _matching_files(name) if not file.format})


def _matching_files(name: str) -> list[InputFile]:
    """All files that a path, folder or pattern matches, also those that cannot be read as documents.

    Raises `UserError` for a path of a file that cannot be read as documents.
    """
    is_local = "://" not in name
    address = str(Path(name).absolute()) if is_local else name
    try:
        system, path = file_system(address)
        # `base` is removed from the files' paths to give their labels: the folder, or a pattern's part without
        # wildcards. A local file may have a wildcard in its name.
        if glob.has_magic(path) and not (is_local and Path(path).exists()):
            base = path[: path.rindex("/", 0, _first_wildcard(path)) + 1] if "/" in path else ""
            entries = system.glob(path, detail=True)
        elif system.isdir(path):
            # Locally, `find` would silently leave out folders that it may not read.
            options: dict[str, Any] = {"on_error": "raise"} if is_local else {}
            base, entries = path.rstrip("/") + "/", system.find(path, detail=True, **options)
        elif system.exists(path):
            base = path[: path.rindex("/") + 1]
            entries = {path: system.info(path)}
            _check_named(name, path, entries[path])
        else:
            raise UserError(f"{name} is not a folder or a file: give {_NAMES}, or a folder that contains some.")
    except (ImportError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{error.filename or name} cannot be read: {error.strerror or error}.") from error
    hidden_pattern = "/." in path.removeprefix(base) or path.removeprefix(base).startswith(".")
    files = []
    for entry, info in entries.items():
        label = entry.removeprefix(base)
        # Programs write hidden files: macOS puts a binary `._NAME.txt` beside each file that it copies.
        if any(part.startswith(".") for part in label.split("/")) and path != entry and not hidden_pattern:
            continue
        info = _link_target(entry) if info.get("islink") else info
        entry_address = entry if is_local else system.unstrip_protocol(entry)
        if info["type"] == "file":
            files.append(InputFile(entry_address, label, info["size"], _stamp(info)))
        elif info["type"] == "other" or "**" not in path:
            # Something else than a file, such as a FIFO, or a folder that a pattern matches; not a document whatever
            # its name is.
            files.append(InputFile(entry_address, "", 0, ""))
    return files


def _check_named(name: str, path: str, info: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the path of a single file can be read as documents."""
    if (_link_target(path) if info.get("islink") else info)["type"] != "file":
        raise UserError(f"{name} is not a regular file, but input is read more than once: write it to a file first.")
    if InputFile(path, path, 0, "").format is None:
        raise UserError(f"{name} cannot be read as documents: give {_NAMES}.")


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

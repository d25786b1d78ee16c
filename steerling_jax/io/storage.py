"""Files on this machine or in a bucket: the one place through which the project uses fsspec.

`StoragePath` is a folder whose files are read and written whole; `file_system` and `open_binary` read anything that
fsspec can address. Arrays are the exception: TensorStore opens them itself, at `StoragePath.array_url`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.zstd_reader import ZstdReader

_SCHEMES = ("gs://", "s3://", "file://")  # addresses that both fsspec and TensorStore can open
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
_REQUESTS = 16  # files read or removed at the same time: a request to a bucket takes tens of milliseconds
_READ_ADVICE = "Check the address, and that you have permission to read there."


@dataclass(frozen=True)
class StoragePath:
    """A folder, given by a local path or by an address (`gs://`, `s3://`, `file://`). Pickles as its address alone.

    A written file appears whole or not at all, also when the process that writes it is killed. All methods raise
    `UserError` when the file system refuses.
    """

    address: str

    def __init__(self, address: str | Path):
        object.__setattr__(self, "address", str(address).rstrip("/"))
        if "://" in self.address and not self.is_remote:
            raise UserError(f"{address} cannot be used; give a local folder, or an address with gs:// or s3://.")

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(f"{self.address}/{name}")

    @property
    def is_remote(self) -> bool:
        """Whether this is an address rather than a local path. A remote folder cannot be renamed into place."""
        return self.address.startswith(_SCHEMES)

    @property
    def array_url(self) -> str:
        """The folder as TensorStore's key-value store URL, with a trailing slash."""
        return f"{self.address}/" if self.is_remote else f"{Path(self.address).absolute().as_uri()}/"

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """The bytes of a file, or bytes `start` to `end` of it; None if there is no such file."""
        with _as_user_error(f"read {self.address}/{name}", _READ_ADVICE):
            files, path = file_system(f"{self.address}/{name}")
            try:
                return files.cat_file(path, start=start, end=end)
            except FileNotFoundError:
                return None

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """The bytes of several files, read concurrently. Raises `UserError` if one of them is missing."""
        contents = []
        for name, content in zip(names, _concurrently(self.read, names), strict=True):
            if content is None:
                raise UserError(f"{self.address}/{name} is missing: remove {self.address} and begin again.")
            contents.append(content)
        return contents

    def write(self, name: str, content: bytes) -> None:
        """Writes a file and the folders above it, replacing the file if it exists."""
        with _as_user_error(f"write {self.address}/{name}", "Choose another folder or free some space."):
            files, path = file_system(f"{self.address}/{name}")
            if isinstance(files, LocalFileSystem):
                _write_local(Path(path), content)
            else:
                files.pipe_file(path, content)  # an upload to a bucket is atomic by itself

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as indented JSON."""
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        # A lone surrogate has no UTF-8 form; this writes it as the escape \udXXX, which JSON can read.
        self.write(name, text.encode("utf-8", errors="backslashreplace"))

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is no such file."""
        with _as_user_error(f"read {self.address}/{name}", _READ_ADVICE):
            files, path = file_system(f"{self.address}/{name}")
            files.invalidate_cache()
            try:
                # Not `exists`, which takes any failure, such as a missing permission, for a missing file.
                info = files.info(path)
            except FileNotFoundError:
                return None
            return info["size"] if info["type"] == "file" else None

    def names(self, folder: str = "") -> set[str]:
        """Names, relative to this folder, of all files in it or in one of its folders, at any depth."""
        with _as_user_error(f"list {self.address}", _READ_ADVICE):
            files, root = file_system(self.address)
            files.invalidate_cache()  # other processes write here too, and fsspec caches listings of buckets
            # Locally, `find` would silently leave out folders that it may not read.
            options: dict[str, Any] = {"on_error": "raise"} if isinstance(files, LocalFileSystem) else {}
            try:
                found = files.find(f"{root}/{folder}".rstrip("/"), **options)
            except FileNotFoundError:
                return set()
            if root in found:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
        return {path.removeprefix(f"{root}/") for path in found if not _PARTIAL.search(path)}

    def remove(self) -> None:
        """Removes the folder and all files in it, if it exists."""
        with _as_user_error(f"remove {self.address}", "Remove it yourself."):
            files, root = file_system(self.address)
            if isinstance(files, LocalFileSystem):
                with contextlib.suppress(FileNotFoundError):
                    files.rm(root, recursive=True)
                return
            # File by file: fsspec's own `rm` expands `*` and `[…]` in the address, and would remove other folders.
            files.invalidate_cache()
            _concurrently(files.rm_file, files.find(root))


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of a local path or an address, and the path inside it.

    Raises `ImportError` when the package for the address's scheme is missing, `ValueError` for an unknown scheme.
    """
    if "://" not in address:  # never parsed as a URL: a local path may hold `::`, which chains URLs in fsspec
        return fsspec.filesystem("file"), str(Path(address).absolute())
    return fsspec.core.url_to_fs(address)


def matching_files(name: str) -> list[tuple[str, int]]:
    """The address and size of the file of that name, or of the files that a pattern such as `texts-*.jsonl` matches,
    sorted. Raises `UserError` where there is none."""
    with _as_user_error(f"read {name}", _READ_ADVICE):
        files, path = file_system(name)
        if files.isfile(path):
            return [(name, files.info(path)["size"])]
        entries = sorted(files.glob(path, detail=True).items())
        found = [(files.unstrip_protocol(entry) if "://" in name else entry, info["size"])
                 for entry, info in entries if info["type"] == "file"]  # fmt: skip
    if not found:
        raise UserError(f"Cannot read {name}: there is no such file, and no file matches it as a pattern.")
    return found


@contextlib.contextmanager
def open_binary(address: str, *, decompress: bool = False) -> Iterator[IO[bytes]]:
    """Opens a file for reading; `decompress` picks the codec by the file's suffix (.gz, .bz2, .xz, .zst)."""
    files, path = file_system(address)
    zstd = decompress and address.lower().endswith(".zst")
    with files.open(path, "rb", compression="infer" if decompress and not zstd else None) as content:
        yield io.BufferedReader(ZstdReader(content, address)) if zstd else content


def _write_local(target: Path, content: bytes) -> None:
    """Writes beside the target and renames. fsspec's own transactions move the file in from the system's temporary
    folder, which is a copy, and so not atomic, where that is another file system."""
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or the rename could reach the disk before the content does
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _concurrently(function: Any, items: Iterable[Any]) -> list[Any]:
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


@contextlib.contextmanager
def _as_user_error(action: str, advice: str) -> Iterator[None]:
    """Converts a failure of the file system into a `UserError`. Each bucket library raises exceptions of its own, not
    all of them `OSError`, so any exception counts."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or error_summary(error)
        raise UserError(f"Cannot {action}: {reason}. {advice}") from error

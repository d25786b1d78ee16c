"""The cache of compiled programs that all commands share, in the user's cache folder.

Most of a short command's time is compilation. JAX stores compiled programs by a hash of the program, the versions of
its compiler and all options, so several versions and processes can share a folder. Machines with other processors that
share a home folder have folders of their own, since a program can hold instructions that only some processors have.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
import warnings
from pathlib import Path

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    # Without these JAX stores only programs that took a second, and this package has many that take less.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
_MINUTE = 60  # seconds
_LARGEST = 1 << 30  # bytes; the cache of a few models has some megabytes


def cache_folder() -> Path:
    """The folder for what commands may store between two runs: STEERLING_CACHE_DIR, or the platform's default.

    Raises `RuntimeError` where the user has no home folder.
    """
    if folder := os.environ.get("STEERLING_CACHE_DIR"):
        return Path(folder)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "steerling"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "steerling"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steerling"


def use_compile_cache() -> None:
    """Makes JAX, which must not be imported yet, and child processes store compiled programs in the cache folder.

    Does nothing where JAX_COMPILATION_CACHE_DIR is set, also to nothing, or JAX is imported already: then the caller
    decides. Without a folder that can be written, commands compile as if there were no cache.
    """
    if DIRECTORY in os.environ or "jax" in sys.modules:
        return
    try:
        folder = cache_folder() / "compiled" / _processor()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            return
        _tidy(folder, _LARGEST)
    except (OSError, RuntimeError):
        return
    os.environ[DIRECTORY] = str(folder.absolute())
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def ignore_damaged_entries() -> None:
    """Keeps JAX from warning of an entry that it cannot read or write, in whichever folder; it compiles instead.

    Another process may be writing the entry at this moment, or a full disk or a kill may have truncated it. This costs
    time and changes nothing, so it is no news to the user.
    """
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def _processor() -> str:
    """A short hash of the processor's kind and, on Linux, its instruction sets."""
    kind = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        # The first processor's; "Features" on ARM.
        kind += [line for line in file if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]


def _is_private(folder: Path) -> bool:
    """Whether the folder can be written, by its owner alone, who is this user: JAX runs what it finds there."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    if not hasattr(os, "geteuid"):
        return True
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _tidy(folder: Path, largest: int) -> None:
    """Removes entries that a killed process left empty, which JAX would never write again and compile each time, and of
    a folder over `largest` bytes the oldest ones, until it has half of that."""
    # A young empty one may be another process's, between creating the file and writing it.
    written = time.time() - _MINUTE
    entries = sorted((status.st_mtime, status.st_size, path) for path in folder.iterdir() if (status := _status(path)))
    empty = [path for modified, size, path in entries if not size and modified < written]
    total = sum(size for _, size, _ in entries)
    left = largest // 2 if total > largest else total
    oldest = []
    for _, size, path in entries:
        if total <= left:
            break
        oldest.append(path)
        total -= size
    for path in (*empty, *oldest):
        with contextlib.suppress(OSError):  # another process may have removed it
            path.unlink()


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return path.stat() if path.is_file() else None
    return None

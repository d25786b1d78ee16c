"""Atomic writes: a file or folder is written under a temporary name beside its target, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from steerling_jax.errors import UserError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `target` on success and removed on any error.

    The temporary path lies in the target's own parent folder, because a rename is atomic only within one file system.
    An existing folder at `target` is replaced only once the new one is complete. Raises `UserError` that names the
    target when the disk is full or may not be written to.

    Args:
        target: the final path; its parent folders are created.
        folder: whether to create a folder; otherwise the caller creates a file at the yielded path.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        path = scratch / target.name
        if folder:
            path.mkdir()
        yield path
        if folder and target.is_dir():
            # POSIX renames over an empty folder only: move the old one aside first, to be removed with `scratch`.
            target.rename(scratch / "replaced")
        path.replace(target)
    except OSError as error:
        if error.errno is None:  # raised by a library for a reason of its own, not by the operating system
            raise
        raise _cannot_write(target, error) from error
    finally:
        _remove(scratch)


def _cannot_write(target: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {target}: {error.strerror}. Choose another location or free some space.")


def _remove(folder: Path) -> None:
    """Removes `folder`. Retries, because a library's thread may still be creating a file in it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)

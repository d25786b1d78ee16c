"""Outputs: files and folders are written under a temporary name and renamed; pipes and devices are written through.

This module decides for every output option what a path means (`resolve_output`):

- A new path or a regular file is replaced atomically. Symbolic links are followed: the file that a link names is
  replaced, and the link remains.
- A FIFO, a character device (`/dev/null`, a terminal) or an open descriptor (`/dev/stdout`, `/dev/fd/N`) receives the
  complete content once it has been computed. It is never replaced.
- A folder, a socket or a block device is refused where a file is to be written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from steerling_jax.errors import UserError

_DESCRIPTORS = re.compile(r"/proc/(?P<process>\w+)(?:/task/\d+)?/fd|/dev/fd")  # their names are numbers
_MAX_LINKS = 40  # the limit of Linux, after which it reports a loop
_REFUSED = ((stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a block device"))


@dataclass(frozen=True)
class OutputTarget:
    """Where an output goes. path: with symbolic links resolved. is_stream: written through and not replaced.

    descriptor: the number of this process's descriptor that `path` names; None for other paths.
    """

    path: Path
    is_stream: bool = False
    descriptor: int | None = None

    @contextlib.contextmanager
    def open_stream(self) -> Iterator[IO[bytes]]:
        """Opens a stream for unbuffered writing. For a FIFO, this waits until another process reads from it."""
        if self.descriptor is None:
            # Without O_CREAT: if the node is removed in the meantime, no regular file takes its place.
            number = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        else:
            # A duplicate shares the position with the original. Opening `/dev/stdout` again would start at the
            # beginning of the file that standard output is redirected to, and overwrite what was printed.
            for standard in (sys.stdout, sys.stderr):
                if standard is not None:  # a process may be started with a closed descriptor
                    standard.flush()
            number = os.dup(self.descriptor)
        with os.fdopen(number, "wb", buffering=0) as stream:
            yield stream


def resolve_output(target: str | os.PathLike[str], *, folder: bool = False) -> OutputTarget:
    """The kind and the final path of an output; nothing is opened or created.

    folder: whether a folder is to be written. Raises `UserError` if the path names something that cannot be written.
    """
    target = Path(target)
    try:
        # Link by link, because `os.path.realpath` follows `/proc/self/fd/1` to a name such as `pipe:[123]`, which does
        # not exist, or to the file that standard output is redirected to, which may not be replaced.
        path = target
        for _ in range(_MAX_LINKS):
            path = Path(os.path.realpath(path.parent)) / path.name
            if not folder and path.name.isdigit() and (match := _DESCRIPTORS.fullmatch(str(path.parent))):
                own = match["process"] in (None, "self", str(os.getpid()))
                return OutputTarget(path, True, int(path.name) if own else None)
            if not path.is_symlink():
                break
            path = path.parent / path.readlink()
        try:
            mode = path.stat().st_mode  # reports a loop of links
        except FileNotFoundError:
            return OutputTarget(path)
    except OSError as error:
        raise _cannot_write(target, error) from error
    if folder:
        if not stat.S_ISDIR(mode):
            raise UserError(f"{target} exists and is not a folder; give another name for the folder to write.")
        return OutputTarget(path)
    for is_kind, word in _REFUSED:
        if is_kind(mode):
            raise UserError(f"Cannot write {target}: it is {word}; give the name of a file.")
    return OutputTarget(path, is_stream=not stat.S_ISREG(mode))


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `target` on success and removed on any error.

    The temporary path lies in the target's own parent folder, because a rename is atomic only within one file system.
    An existing folder at `target` is replaced only once the new one is complete. If `target` is a stream (see the
    module), the file is written to it on success instead. Raises `UserError` that names the target when it cannot be
    written: the disk is full, permission is missing, or it is not a file (a folder, with `folder`).

    Args:
        target: the final path; its parent folders are created.
        folder: whether to create a folder; otherwise the caller creates a file at the yielded path.
    """
    output = resolve_output(target, folder=folder)
    final = output.path
    try:
        if output.is_stream:
            scratch = Path(tempfile.mkdtemp())  # files cannot be created beside /dev/stdout
        else:
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        path = scratch / Path(target).name  # with the given suffix, from which writers may choose a format
        if folder:
            path.mkdir()
        yield path
        if output.is_stream:
            with path.open("rb") as file, output.open_stream() as stream:
                _copy(file, stream)
            return
        if folder and final.is_dir():
            # POSIX renames over an empty folder only: move the old one aside first, to be removed with `scratch`.
            final.rename(scratch / "replaced")
        path.replace(final)
    except OSError as error:
        if error.errno is None:  # raised by a library for a reason of its own, not by the operating system
            raise
        if isinstance(error, BrokenPipeError) and output.descriptor is not None:
            raise  # as for all other output to a descriptor whose reader has exited
        raise _cannot_write(target, error) from error
    finally:
        _remove(scratch)


def write_whole(stream: IO[bytes], content: bytes) -> None:
    """Writes all of `content` to an unbuffered stream, which may accept fewer bytes at a time."""
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def _copy(source: IO[bytes], stream: IO[bytes]) -> None:
    while block := source.read(1 << 20):
        write_whole(stream, block)


def _cannot_write(target: str | os.PathLike[str], error: OSError) -> UserError:
    return UserError(f"Cannot write {target}: {error.strerror}. Choose another location or free some space.")


def _remove(folder: Path) -> None:
    """Removes `folder`. Retries, because a library's thread may still be creating a file in it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)

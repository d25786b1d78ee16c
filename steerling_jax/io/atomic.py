"""Files appear whole or not at all: write to a temporary name beside the target, then rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target`; on success it takes the target's name, on any error it is removed.

    An existing folder at `target` is replaced only once the new one is complete. A full disk, or a place that cannot be
    written, becomes a `UserError` that names the target.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}. Choose another place or free some space.") from error
    try:
        path = scratch / target.name
        if folder:
            path.mkdir()
        yield path
        if folder and target.is_dir():
            target.rename(scratch / "replaced")
        path.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f"Cannot write {target}: {error.strerror}. Choose another place or free some space.") from error
    finally:
        _remove(scratch)


def _remove(folder: Path) -> None:
    """Removes `folder`; a library's thread may still be writing a file into it, so more than one try."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(target) as path:
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""Partial results of a long measurement, one small file each, so that an interrupted run can continue."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json
from steerling_jax.io.text_files import load_json


@dataclass(frozen=True)
class PartialResults:
    """Named results in a folder, all of the same settings. Without a folder nothing is stored."""

    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path, about: Mapping[str, Any]) -> PartialResults:
        """The stored results of the settings `about`; results of other settings are removed."""
        partial = cls(folder)
        if folder.exists() and (
            not (folder / "about.json").exists() or partial.get_or_compute("about", dict) != plain(about)
        ):
            shutil.rmtree(folder)
        partial.get_or_compute("about", lambda: dict(about))
        return partial

    def get_or_compute(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of that name, read from its file if there is one, else computed and stored.

        Always the value that JSON gives back (`cli.console.plain`), so that a resumed run continues with exactly the
        values of an uninterrupted one. Raises `UserError` for a damaged file.
        """
        if self.folder is None:
            return plain(compute())
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, plain(compute()))
        try:
            return load_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: remove it, or choose another --out.") from error

    def remove(self) -> None:
        """Removes the folder, when the measurement is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


NOT_STORED = PartialResults()

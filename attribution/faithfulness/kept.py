"""Results of a long part, one small file each, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json


@dataclass(frozen=True)
class PartialResults:
    """Results in a folder, all of the same settings; without a folder nothing is kept."""

    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path, about: Mapping[str, Any]) -> PartialResults:
        """What was kept for these settings; what is there for other ones is removed."""
        kept = cls(folder)
        if folder.exists() and (not (folder / "about.json").exists() or kept.get("about", dict) != plain(about)):
            shutil.rmtree(folder)
        kept.get("about", lambda: dict(about))
        return kept

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name as JSON gives it back (`cli.console.plain`): read if it is there, else made."""
        if self.folder is None:
            return plain(make())
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, plain(make()))
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: remove it, or choose another --out.") from error

    def remove(self) -> None:
        """For when the part is whole."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


NOTHING_KEPT = PartialResults()

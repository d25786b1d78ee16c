"""Finished parts of a long measurement, one JSON line each, so that an interrupted run continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.text_files import load_json


class UnitLog:
    """The results of units by name, in a file whose first line is `header`.

    A file with another header belongs to another measurement (model, corpus or settings) and is begun anew.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path = path
        self._results: dict[str, Any] = {}
        first = json.dumps({"header": header}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] == [first]:
            for line in lines[1:]:
                try:
                    entry = load_json(line)
                except ValueError:  # a killed run leaves at most one line unfinished
                    break
                self._results[entry["unit"]] = entry["result"]
        rows = [first, *(self._line(unit, result) for unit, result in self._results.items())]
        with atomic_path(path) as whole:  # a run that is killed here loses no finished unit
            whole.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

    def __call__(self, unit: str, compute: Callable[[], Any]) -> Any:
        """The result of a unit, computed unless the file has it; a value of JSON."""
        if unit not in self._results:
            self._results[unit] = compute()
            self._append(f"{self._line(unit, self._results[unit])}\n")
        return self._results[unit]

    def close(self) -> None:
        """Removes the file of a finished measurement."""
        self.path.unlink(missing_ok=True)

    def _line(self, unit: str, result: Any) -> str:
        return json.dumps({"unit": unit, "result": result})

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}; choose another --out.") from error

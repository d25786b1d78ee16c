"""The calls of a generator with their results, in a folder, so that a run that was killed continues where it was.

run.json        what the run is about: another run must not continue it
calls.jsonl     a line for each finished call, in order, on the disk before the next call begins
examples.jsonl  the texts that are kept, a data set with the column "text"
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from steerling_jax.errors import UserError
from steerling_jax.explain.features.example_requests import Outcome
from steerling_jax.io.atomic import atomic_path, resolve_output
from steerling_jax.io.disk_errors import report_disk_errors
from steerling_jax.io.file_lock import lock_file
from steerling_jax.io.json_files import read_json_object, write_json
from steerling_jax.io.text_files import load_json


@dataclasses.dataclass(frozen=True)
class Call:
    """A finished call. arm: of which kind its prompt was. number: within the arm, from 0. feature: the requested one;
    None for a prompt without a feature. fires: the missing targets that fire in the text, with their largest latents.
    problem: why an output is unusable."""

    arm: str
    number: int
    feature: int | None
    outcome: Outcome
    text: str
    fires: dict[int, float]
    problem: str
    generator: str


class CallLog:
    """The calls of a run in `folder`, for one process at a time; close it, or use it in a `with` block.

    header: what the run is about, values of JSON. Raises `UserError` for a folder with another run or with other files,
    or that another process uses.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]):
        resolve_output(folder, folder=True)
        self.folder = folder
        self._check(header)
        self._file: IO[str] | None = None
        with report_disk_errors(f"Cannot write {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "calls.jsonl").open("a+", encoding="utf-8")
        try:
            busy = f"Another run writes to {folder}; wait for it, or give another --out."
            lock_file(self._file, str(folder), "--out", busy)
            self.calls = self._read(self._file)
            write_json(folder / "run.json", dict(header))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> CallLog:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()

    def of_arm(self, arm: str) -> list[Call]:
        """The calls of an arm, in order."""
        return [call for call in self.calls if call.arm == arm]

    def append(self, call: Call) -> None:
        """Stores a call: on return its line is on the disk."""
        assert self._file is not None
        with report_disk_errors(f"Cannot write {self.folder}"):
            self._file.write(json.dumps(dataclasses.asdict(call)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.calls.append(call)

    def write_examples(self, rows: list[dict[str, Any]]) -> None:
        """Replaces examples.jsonl."""
        with atomic_path(self.folder / "examples.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _check(self, header: Mapping[str, Any]) -> None:
        path = self.folder / "run.json"
        if not path.is_file():
            # calls.jsonl is created before run.json, so it is empty where a run was killed between the two.
            others = [one.name for one in self.folder.iterdir()] if self.folder.is_dir() else []
            calls = self.folder / "calls.jsonl"
            if others not in ([], ["calls.jsonl"]) or (calls.is_file() and calls.stat().st_size):
                raise UserError(f"{self.folder} holds other files and no run of `sae cover`; give another --out.")
            return
        stored = read_json_object(path)
        for name, value in header.items():
            if stored.get(name) != load_json(json.dumps(value)):
                raise UserError(
                    f"{self.folder} holds a run with another {name.replace('_', ' ')}; give the same options as "
                    "before, or another --out."
                )

    def _read(self, file: IO[str]) -> list[Call]:
        """The stored calls. A last line without an end was being written when a run was killed: it is removed."""
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind("\n") + 1]
        if len(whole) < len(content):
            file.truncate(len(whole.encode()))
            file.seek(0, os.SEEK_END)
        calls = []
        for number, line in enumerate(whole.split("\n")[:-1], start=1):
            try:
                values = cast("dict[str, Any]", load_json(line))
                values["fires"] = {int(feature): float(value) for feature, value in values["fires"].items()}
                calls.append(Call(**values))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{file.name}, line {number}, is damaged ({error!r}); restore the file.") from error
        return calls

"""Parts of a source: which files, or which lines or row groups of a file, one worker reads at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

PACKED = (".gz", ".bz2", ".xz")


FORMATS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class InputFile:
    """address: what fsspec opens. label: its name below the folder or pattern it was found by. stamp: changes with
    its content, as far as the file system tells."""

    address: str
    label: str
    size: int
    stamp: str

    @property
    def format(self) -> str | None:
        return FORMATS.get(self._plain.suffix.lower())

    @property
    def is_packed(self) -> bool:
        return self._plain.name != PurePosixPath(self.label).name

    @property
    def _plain(self) -> PurePosixPath:
        name = PurePosixPath(self.label)
        return name.with_suffix("") if name.suffix in PACKED else name


@dataclass(frozen=True)
class Part:
    """Some of a source's text: whole files, or of one JSON lines file the lines that begin in bytes `start` to `end`,
    or of one Parquet file the row groups `start` to `end`. end −1: to the end."""

    source: int
    format: str
    files: tuple[InputFile, ...]
    start: int = 0
    end: int = -1

    def to_json(self) -> list[Any]:
        files = [[f.address, f.label, f.size, f.stamp] for f in self.files]
        return [self.source, self.format, files, self.start, self.end]

    @classmethod
    def from_json(cls, saved: Sequence[Any]) -> Part:
        source, format, files, start, end = saved
        return cls(source, format, tuple(InputFile(*f) for f in files), start, end)

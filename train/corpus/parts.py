"""A part of a source: the files, or lines or row groups of one file, that one worker reads at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.train.corpus.input_files import InputFile


@dataclass(frozen=True)
class Part:
    """Part of a source's text.

    source: the source's number. format: "text", "jsonl" or "parquet". start, end: of a JSON lines file, the lines that
    begin in the bytes `start` to `end`; of a Parquet file, the row groups `start` to `end`; of text files, unused. end
    −1: to the end of the file.
    """

    source: int
    format: str
    files: tuple[InputFile, ...]
    start: int = 0
    end: int = -1

    def to_json(self) -> list[Any]:
        files = [[file.address, file.label, file.size, file.stamp] for file in self.files]
        return [self.source, self.format, files, self.start, self.end]

    @classmethod
    def from_json(cls, saved: Sequence[Any]) -> Part:
        source, format, files, start, end = saved
        return cls(source, format, tuple(InputFile(*file) for file in files), start, end)

"""Sources of documents: files that the user names, or sources described in TOML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.toml_files import absolute, check_fields, title, toml_tables

KINDS = ("prose", "code")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """Files of documents and how to read them.

    files: paths, folders and patterns with `*`, local or remote (`gs://…`); in a TOML file relative to that file.
    name: the source of its documents; if empty, each document names its own, or it is "text".
    kind: "code" is divided into chunks at line ends, "prose" at sentence ends.
    text_field, name_field, id_field: fields of a JSON line, or columns of a Parquet file. Tables of labels are joined
    by the id.
    chunk_tokens: upper bound of a chunk's length in tokens; 0 for the preparation's.
    """

    files: tuple[str, ...]
    name: str = ""
    description: str = ""
    license: str = ""
    homepage: str = ""
    kind: str = "prose"
    text_field: str = "text"
    name_field: str = "name"
    id_field: str = "id"
    chunk_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"files": list(self.files)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TextSource:
        values: dict[str, Any] = dict(saved) | {"files": tuple(saved["files"])}
        return cls(**values)


def read_sources(*paths: str | Path) -> list[TextSource]:
    """The `[[source]]` tables of TOML files. Raises `UserError` that names file, source and field."""
    sources: dict[str, tuple[TextSource, Path]] = {}
    for path in map(Path, paths):
        tables = toml_tables(path, "source")
        if not tables:
            raise UserError(f"{path} describes no source: add a [[source]] table with name, files and license.")
        for number, table in enumerate(tables, 1):
            source = _source(table, number, path)
            if source.name in sources:
                raise UserError(
                    f"{path}: the source {source.name!r} is already defined in {sources[source.name][1]}: rename one."
                )
            sources[source.name] = source, path
    return [source for source, _ in sources.values()]


def _source(table: dict[str, Any], number: int, path: Path) -> TextSource:
    where, values = title(path, "source", number, table), dict(table)
    if isinstance(values.get("files"), str):
        values["files"] = [values["files"]]
    types = {field.name: str for field in fields(TextSource)} | {"files": list, "chunk_tokens": int}
    check_fields(values, types, required=("name", "files", "license", "description"), title=where, kind="source")
    if not _NAME.fullmatch(values["name"]):
        raise UserError(f"{where}: name is {values['name']!r}; use only letters, digits, '-', '_' and '.'.")
    if values.get("kind", "prose") not in KINDS:
        raise UserError(f"{where}: kind is {values['kind']!r}; give {' or '.join(KINDS)}.")
    if values.get("chunk_tokens", 0) < 0:
        raise UserError(f"{where}: chunk_tokens is {values['chunk_tokens']}; give a number of tokens.")
    return TextSource.from_json(values | {"files": [absolute(name, path.parent) for name in values["files"]]})

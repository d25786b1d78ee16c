"""Where documents come from: a folder or files that the user names, or a source described in a file of its own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError

KINDS = ("prose", "code")
_DESCRIBED = ("concept", "source", "labels")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """Files and how to read them.

    name: what its documents' source is called; empty: what each document says itself, else "text".
    files: paths, folders, patterns with `*`, here or by address (`gs://…`); relative ones are the describing file's.
    kind: "code" is cut into chunks at ends of lines, "prose" at ends of sentences.
    text_field, name_field, id_field: fields of a JSON line, or columns of a Parquet table. The id is what a table of
    labels may be joined by.
    chunk_tokens: longest chunk; 0: as `steerling prepare` is told.
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
    found: dict[str, tuple[TextSource, Path]] = {}
    for path in map(Path, paths):
        tables = toml_tables(path, "source")
        if not tables:
            raise UserError(f"{path} describes no source: add a [[source]] table with name, files and license.")
        for number, table in enumerate(tables, 1):
            source = _source(table, number, path)
            if source.name in found:
                raise UserError(
                    f"{path}: the source {source.name!r} is there already, in {found[source.name][1]}: rename one."
                )
            found[source.name] = source, path
    return [source for source, _ in found.values()]


def _source(table: dict[str, Any], number: int, path: Path) -> TextSource:
    where = f"{path}: source {table.get('name') or number!r}"
    values: dict[str, Any] = dict(table)
    if isinstance(values.get("files"), str):
        values["files"] = [values["files"]]
    for field in fields(TextSource):
        value = values.get(field.name)
        wanted = {"files": list, "chunk_tokens": int}.get(field.name, str)
        if value is not None and type(value) is not wanted:
            raise UserError(f"{where}: {field.name} is {value!r}; give a {_WORDS[wanted]}.")
    if unknown := sorted(values.keys() - {field.name for field in fields(TextSource)}):
        raise UserError(f"{where}: {unknown[0]} is not a field of a source; the fields are {_field_names()}.")
    if missing := [name for name in ("name", "files", "license", "description") if not values.get(name)]:
        raise UserError(f"{where} has no {missing[0]}: add one.")
    if not _NAME.fullmatch(values["name"]):
        raise UserError(f"{where}: name is {values['name']!r}; use letters, digits, '-', '_' and '.' alone.")
    if values.get("kind", "prose") not in KINDS:
        raise UserError(f"{where}: kind is {values['kind']!r}; give {' or '.join(KINDS)}.")
    if values.get("chunk_tokens", 0) < 0:
        raise UserError(f"{where}: chunk_tokens is {values['chunk_tokens']}; give a number of tokens.")
    if not all(isinstance(name, str) and name for name in values["files"]):
        raise UserError(f"{where}: files holds something that is no text; give paths or addresses.")
    return TextSource.from_json(values | {"files": [absolute(name, path.parent) for name in values["files"]]})


_WORDS = {list: "list of texts", int: "whole number", str: "text"}


def _field_names() -> str:
    return ", ".join(field.name for field in fields(TextSource))


def absolute(name: str, folder: Path) -> str:
    return name if "://" in name else str((folder / name).absolute())


def toml_tables(path: Path, name: str) -> list[dict[str, Any]]:
    """The `[[name]]` tables of a TOML file. Raises `UserError` for one that cannot be read or is no TOML, and for one
    that has other tables beside them than those of concepts, sources and labels."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: write [[{name}]], with two brackets, above each {name}.")
    if tables and (unknown := sorted(content.keys() - _DESCRIBED)):
        raise UserError(f"{path}: {unknown[0]} is none of {', '.join(_DESCRIBED)}: rename it, or remove it.")
    return tables


def toml_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and the `.toml` files of the folders named, in order of name."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*.toml")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} holds no .toml files: put one into it, or name another folder.")
        found += inside
    return found

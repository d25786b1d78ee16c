"""Reads and validates the TOML files in which users describe concepts, sources and tables of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.text_files import read_toml

TABLES = ("concept", "source", "labels")
_TYPE_WORDS = {str: "a string", int: "an integer", float: "a decimal number", list: "a list of strings"}


def toml_files(paths: Sequence[str | Path]) -> list[Path]:
    """The given files, and the `.toml` files in the given folders in order of name.

    Raises `UserError` for a folder without any.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        # Hidden files are left out: macOS puts a binary `._NAME.toml` beside a file that it copies.
        members = sorted(path.rglob("[!.]*.toml")) if path.is_dir() else [path]
        if not members:
            raise UserError(f"{path} contains no .toml files: add one, or name another folder.")
        files += members
    return files


def toml_tables(path: Path, name: str) -> list[dict[str, Any]]:
    """The `[[name]]` tables of a TOML file.

    Raises `UserError` for a file that cannot be read or is not TOML, and for top-level tables beside `[[name]]` that
    are none of `TABLES`.
    """
    content = read_toml(path)
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: write [[{name}]], with two brackets, above each {name}.")
    if tables and (unknown := sorted(content.keys() - TABLES)):
        raise UserError(f"{path}: {unknown[0]} is none of {', '.join(TABLES)}: rename it, or remove it.")
    return tables


def title(path: Path, kind: str, number: int, table: Mapping[str, Any]) -> str:
    """How error messages refer to a table: its file, and its name or, without one, its number in the file."""
    return f"{path}: {kind} {table.get('name') or number!r}"


def check_fields(
    table: Mapping[str, Any], types: Mapping[str, type], *, required: Sequence[str], title: str, kind: str
) -> None:
    """Validates the names and types of a table's fields.

    types: the type of each field, one of str, int, float and list (of non-empty strings). required: fields that must
    have a non-empty value. Raises `UserError` that names the field.
    """
    for name, value in table.items():
        if name not in types:
            raise UserError(f"{title}: {name} is not a field of a {kind}; the fields are {', '.join(types)}.")
        valid = type(value) is types[name]  # isinstance() would accept true and false as integers
        if valid and types[name] is list:
            valid = all(isinstance(item, str) and item for item in value)
        if not valid:
            raise UserError(f"{title}: {name} is {value!r}; give {_TYPE_WORDS[types[name]]}.")
    for name in required:
        value = table.get(name)
        if not (value.strip() if isinstance(value, str) else value):
            raise UserError(f"{title} has no {name}: add one.")


def absolute(name: str, folder: Path) -> str:
    """A path relative to `folder` as an absolute path; addresses such as `gs://…` unchanged."""
    return name if "://" in name else str((folder / name).absolute())

"""Tables of labels made elsewhere: what their TOML description says, its validation, and the concepts of a table.

A table is Parquet or JSON lines, with a row per document or per chunk and the concept ids of each. The default column
names are those of FineWeb-Atlas: chunks in `doc_int_id`, `chunk_id`, `chunk_text`, `content_ids`, `tone_ids`,
`document_ids`, `entity_ids`; concepts in `concept_id`, `name`, `description`, `concept_type`. Source: the data set's
card, https://huggingface.co/datasets/guidelabs/fineweb-atlas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.input_files import InputFile, source_files
from steerling_jax.train.corpus.reading import column_names, read_rows
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.corpus.toml_files import absolute, check_fields, title, toml_tables

_THREADS = 16  # that read the column names of files, which may be remote


@dataclass(frozen=True)
class TableSettings:
    """A `[[labels]]` table of a TOML file.

    files, concepts: the files of labels, and the file with the table's concepts. document: the column with the
    document's id or, with by = "sha256", with the SHA-256 of its text. chunk, text: columns with the chunk's number and
    text; without a text column, a row is about the whole document. labels: columns with lists of concept ids.
    concept_id, concept_name, concept_description, concept_group: columns of the concepts' file.
    named: the fields that the TOML file sets itself. Their columns must exist; of the default label columns, one is
    enough.
    """

    name: str
    files: tuple[str, ...]
    concepts: str
    document: str = "doc_int_id"
    by: str = "id"
    chunk: str = "chunk_id"
    text: str = "chunk_text"
    labels: tuple[str, ...] = ("content_ids", "tone_ids", "document_ids", "entity_ids")
    concept_id: str = "concept_id"
    concept_name: str = "name"
    concept_description: str = "description"
    concept_group: str = "concept_type"
    named: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields that decide the labels."""
        return {key: value for key, value in asdict(self).items() if key != "named"}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TableSettings:
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in saved.items()}
        return cls(**values)


_FIELD_TYPES: dict[str, type] = {
    field.name: list if field.name in ("files", "labels") else str
    for field in fields(TableSettings)
    if field.name != "named"
}


def read_table_settings(path: str | Path) -> list[TableSettings]:
    """The `[[labels]]` tables of a TOML file. Raises `UserError` that names file and field."""
    path = Path(path)
    tables = []
    for number, table in enumerate(toml_tables(path, "labels"), 1):
        where = title(path, "labels", number, table)
        if isinstance(table.get("files"), str):
            table["files"] = [table["files"]]
        # A field that is present may not be empty.
        required = ("name", "files", "concepts", *table)
        check_fields(table, _FIELD_TYPES, required=required, title=where, kind="table of labels")
        if table.get("by", "id") not in ("id", "sha256"):
            raise UserError(f"{where}: by is {table['by']!r}; give id or sha256.")
        files = [absolute(name, path.parent) for name in table["files"]]
        concepts = absolute(table["concepts"], path.parent)
        tables.append(TableSettings.from_json(table | {"files": files, "concepts": concepts, "named": sorted(table)}))
    if not tables:
        raise UserError(f"{path} describes no table of labels: add a [[labels]] table with name, files and concepts.")
    return tables


def check_table(table: TableSettings) -> None:
    """Raises `UserError` for files that do not exist and for files without a column that the table needs."""
    label_columns = [table.document, *(getattr(table, key) for key in ("chunk", "text") if key in table.named)]
    label_columns += table.labels if "labels" in table.named else ()
    concept_columns = [table.concept_id, table.concept_name]
    concept_columns += [getattr(table, key) for key in ("concept_description", "concept_group") if key in table.named]
    _check_files(table, table.files, label_columns, one_of=table.labels)
    _check_files(table, (table.concepts,), concept_columns, one_of=concept_columns)


def _check_files(table: TableSettings, names: Sequence[str], needed: Sequence[str], one_of: Sequence[str]) -> None:
    """Checks that each Parquet file, and all JSON lines files together, have the columns `needed` and `one_of`."""
    files = source_files(TextSource(tuple(names)))
    # A Parquet file has a schema; of JSON lines, each object may lack a field that another one has.
    lines = [file for file in files if file.format != "parquet"]
    groups = [[file] for file in files if file.format == "parquet"] + [lines] * bool(lines)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda group: _check_columns(group, table.name, needed, one_of), groups))


def _check_columns(files: Sequence[InputFile], name: str, needed: Sequence[str], one_of: Sequence[str]) -> None:
    """Raises `UserError` unless the files together have all columns of `needed` and at least one of `one_of`."""
    present: dict[str, None] = {}  # an ordered set
    for column in (column for file in files for column in column_names(file)):
        present[column] = None
        # JSON lines are read only until all columns have occurred.
        if present.keys() >= {*needed} and not present.keys().isdisjoint(one_of):
            return
    missing = [repr(column) for column in needed if column not in present] or [" or ".join(map(repr, one_of))]
    if present:  # files without rows are valid
        where = files[0].address + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        raise UserError(
            f"There is no column {missing[0]} in {where}: name the right column in the table of labels {name!r}; "
            f"the columns are {', '.join(present)}."
        )


def table_concepts(table: TableSettings) -> list[dict[str, Any]]:
    """The table's concepts: id (the table's own), name, group, description.

    Raises `UserError` for a row without an integer id or a name.
    """
    concepts = []
    columns = [table.concept_id, table.concept_name, table.concept_description, table.concept_group]
    for where, row in table_rows((table.concepts,), columns):
        id, name = row.get(table.concept_id), row.get(table.concept_name)
        if type(id) is not int or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{where} is not a concept: {table.concept_id} is {id!r} and {table.concept_name} is {name!r}; give an "
                "integer and a name."
            )
        texts = {"description": row.get(table.concept_description), "group": row.get(table.concept_group)}
        concepts.append({"id": id, "name": name.strip()} | {key: str(value or "") for key, value in texts.items()})
    return concepts


def table_rows(files: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row of Parquet or JSON lines files."""
    for file in source_files(TextSource(tuple(files))):
        yield from read_rows(file, columns)

"""Documents from a folder of the user's own files, plain text or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from steerling_jax.errors import UserError

from .documents import Document


def folder_documents(folder: str | Path) -> Iterator[Document]:
    """The `.txt` files of a folder (a document each) and its `.jsonl` files (one a line), in order of name.

    A JSON line has `text` and may have `name`, `source` and `labels` (names of known concepts). Raises `UserError`
    naming the file, and the line, for text that is not UTF-8, broken JSON and missing fields, and for a folder without
    documents.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds .txt or .jsonl files.")
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".txt", ".jsonl") or not path.is_file():
            continue
        text = _read_text(path)
        name = str(path.relative_to(folder))
        found = _json_documents(path, name, text) if path.suffix == ".jsonl" else [Document(name, "text", text)]
        for document in found:
            if document.text.strip():
                count += 1
                yield document
    if not count:
        raise UserError(f"{folder} holds no documents: put .txt files, or .jsonl files with a text field, into it.")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, for example with iconv."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def _json_documents(path: Path, name: str, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_document(f"{path}, line {number}", f"{name}:{number}", line)


def _json_document(where: str, name: str, line: str) -> Document:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise UserError(f'{where} has no text: each line is an object such as {{"text": "..."}}.')
    for key in ("name", "source"):
        if not isinstance(fields.get(key, ""), str):
            raise UserError(f"{where}: {key} is to be a string.")
    labels = fields.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{where}: labels is to be a list of concept names.")
    return Document(fields.get("name", name), fields.get("source", "text"), fields["text"], labels=tuple(labels))

"""Reads and writes traces as JSON files; docs/design/trace-format.md describes the format."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace_record import Origin, TraceRecord, from_plain, origin_of, to_plain
from steerling_jax.errors import UserError, require
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.text_files import load_json, read_text
from steerling_jax.io.training_documents import read_training_documents

_PACKAGES = ("steerling-jax", "jax", "jaxlib", "numpy")
# Version 2 says in `reference` what is split into contributions; documents of version 1 split the raw logit.
EXPLANATION, EXPLANATION_VERSION = "steerling-explanation", 2
_READABLE_VERSIONS = (1, 2)


def model_origin(bundle: Bundle) -> Origin:
    """The model's identity for a trace, with its training documents if its folder has a `documents.json`."""
    trained = read_training_documents(bundle.folder)
    corpus = None
    if trained is not None:
        corpus = {"documents": len(trained), "documents_sha256": _hash("\n".join(sorted(trained)))}
    return origin_of(bundle, corpus, package_versions())


def package_versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages that compute."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def write_trace(path: str | os.PathLike[str], record: TraceRecord) -> None:
    """Writes `record` atomically, without its hidden states, since they can be computed again."""
    with atomic_path(path) as target:
        target.write_text(trace_text(record), encoding="utf-8", errors="backslashreplace")


def trace_text(record: TraceRecord) -> str:
    """The content of a trace file: one line per field, and one per commit."""
    plain = to_plain(record)
    commits = ",\n  ".join(json.dumps(commit) for commit in plain.pop("commits"))
    # Text is written readably rather than as \u escapes. A lone surrogate has no UTF-8 form; `write_trace` escapes it.
    fields = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items()]
    return "{\n" + ",\n".join([*fields, f' "commits": [\n  {commits}\n ]']) + "\n}\n"


def read_trace(path: str | os.PathLike[str], id: str | int | None = None) -> TraceRecord:
    """Reads a trace.

    Args:
        path: a trace file, or with `id`, a file of batch results.
        id: the id of the batch result whose trace to read.

    Raises:
        UserError: the file cannot be read, is not a trace, or has no result with that id and a trace.
    """
    return from_plain(*_read_value(Path(path), id))


def read_explained_trace(
    path: str | os.PathLike[str], id: str | int | None = None
) -> tuple[TraceRecord, Mapping[str, Any] | None]:
    """Reads a trace, or the trace within an explanation that `steerling trace --json` wrote, and that explanation (None
    for a trace alone). Arguments and errors are those of `read_trace`."""
    value, where = _read_value(Path(path), id)
    if not isinstance(value, Mapping) or value.get("format") != EXPLANATION:
        return from_plain(value, where), None
    found = value.get("version")
    require(
        found in _READABLE_VERSIONS,
        f"{where} is an explanation of version {found!r}, and this program reads up to {EXPLANATION_VERSION}.",
    )
    return from_plain(value.get("trace"), where), value


def _read_value(path: Path, id: str | int | None) -> tuple[Any, str]:
    """The JSON value of a trace, and what errors call it."""
    text = read_text(path, "trace")
    if id is not None:
        return _batch_line(path, text, id).get("trace"), f"{path}, {id!r}"
    try:
        return load_json(text), str(path)
    except ValueError as error:
        raise UserError(f"{path} is not a trace, or it is truncated ({error}); make it again.") from None


def _batch_line(path: Path, text: str, id: str | int) -> Mapping[str, Any]:
    for line in text.split("\n"):  # not `splitlines`, which also splits at U+2028 and others, inside of JSON strings
        try:
            value = load_json(line)
        except ValueError:
            continue
        if isinstance(value, Mapping) and str(value.get("id")) == str(id) and "trace" in value:
            return value
    raise UserError(f'{path} has no result with the id {id!r} and a trace; ask for one with "trace": true.')


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

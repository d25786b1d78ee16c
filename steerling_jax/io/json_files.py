"""JSON files: read with one-sentence errors, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.text_files import load_json


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `UserError` if the file cannot be read, is not JSON, or holds another value."""
    return _read(path, dict, "object")


def read_json_array(path: Path) -> list[Any]:
    """Reads a JSON array. Raises `UserError` if the file cannot be read, is not JSON, or holds another value."""
    return _read(path, list, "array")


def _read(path: Path, kind: type, word: str) -> Any:
    try:
        value = load_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; is this the right folder?") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore the file.") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} must hold a JSON {word}, not a {type(value).__name__}; restore the file.")
    return value


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(target) as path:
        path.write_bytes(_encoded(value, indent=1))


def write_model_json(path: Path, value: Any) -> None:
    """Writes `value` with the indentation of published model folders.

    Not atomic by itself: it is for files in a folder that `atomic_path` moves into place as a whole. So an error such
    as a full disk names that folder, and not a file in its temporary location.
    """
    path.write_bytes(_encoded(value, indent=2))


def _encoded(value: Any, indent: int) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # A lone surrogate has no UTF-8 form; this writes it as the escape \udXXX, which JSON can read.
    return text.encode("utf-8", errors="backslashreplace")

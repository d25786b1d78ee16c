"""The reader of all text files that users give: UTF-8 with or without a byte order mark; JSON and TOML.

`load_json` and `read_toml` raise one kind of exception whatever is wrong with a document, also when it is nested
thousands deep or contains a number of thousands of digits.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError

# Far more than any format here has. Values that are nested deeper could be parsed, but printing them in an error
# message or writing them again would exceed Python's recursion limit, which also differs between its versions.
_MAX_DEPTH = 100


def decode_text(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises `UserError` that begins with `where`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte {error.start}): convert it, for example with iconv."
        ) from error


def read_text(path: str | Path, description: str = "") -> str:
    """A text file's content, with line ends as `\\n`.

    path: local, or an address such as gs://…. description: what error messages call the file, if anything.

    Raises `UserError` if the file cannot be read or is not UTF-8 text.
    """
    try:
        content = _content(path)
    except OSError as error:
        name = f"the {description} {path}" if description else path
        raise UserError(f"Cannot read {name}: {error.strerror or error}.") from error
    return (
        decode_text(content, f"The {description} {path}" if description else str(path))
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )


def _content(path: str | Path) -> bytes:
    if "://" not in str(path):
        return Path(path).read_bytes()
    from steerling_jax.io.storage import open_binary  # here, so that local files need no fsspec

    with open_binary(str(path)) as file:
        return file.read()


def load_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON document, with or without a byte order mark; arguments as those of `json.loads`.

    Raises `ValueError` for an invalid document, also where `json` would raise `RecursionError`, and for one that is
    nested more than 100 deep.
    """
    if isinstance(text, str):
        text = text.removeprefix("\ufeff")
    try:
        value = json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # Counting brackets is fast, and few documents have so many that the depth must be measured.
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > _MAX_DEPTH and _is_too_deep(value):
        raise ValueError("it is nested too deeply")
    return value


def read_toml(path: str | Path, description: str = "") -> dict[str, Any]:
    """A TOML file's document. Raises `UserError` if the file cannot be read or is not valid TOML."""
    text = read_text(path, description)
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # also for integers of thousands of digits
        raise UserError(f"{path} is not valid TOML: {error}.") from error
    except RecursionError:
        raise UserError(f"{path} is not valid TOML: it is nested too deeply.") from None
    if _is_too_deep(document):
        raise UserError(f"{path} is not valid TOML: it is nested too deeply.")
    return document


def replace_surrogates(value: Any) -> Any:
    """A JSON value with each lone surrogate in its strings replaced by `?`.

    JSON can escape one (`"\\ud800"`), but it is not a character and has no UTF-8 form, so that writing it fails.
    """
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value


def _is_too_deep(value: Any) -> bool:
    """Whether containers are nested more than `_MAX_DEPTH` deep; level by level, without recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return True

"""The input of a batch: requests as JSON, one object a line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.infer.generation_request import FIELDS, InvalidField, shown
from steerling_jax.io.text_files import load_json

Id = str | int

_FIELDS = {*FIELDS, "id", "prompt", "prompt_ids"}


def count_requests(path: Path) -> int:
    """The number of requests in the file: lines that are not blank."""
    return sum(1 for _ in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1. Raises `UserError` where the file cannot be read."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; give a file of requests.") from None


def parse_line(text: bytes) -> dict[str, Any]:
    """The fields of a line. Raises `UserError` where it is not a JSON object or has unknown fields."""
    try:
        fields = load_json(text)
    except ValueError as error:
        raise UserError(f"this is not JSON ({error}); write one object on one line.") from None
    if not isinstance(fields, dict):
        raise UserError("this is JSON, but not an object; write one object on one line.")
    for name in fields:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise InvalidField(f"there is no field {shown(name)}; {hint}", name)
    return fields


def request_id(fields: dict[str, Any], line: int, lines: dict[str, int]) -> Id:
    """The id of the request on `line`. lines: the ids of the earlier requests, as text, to their lines; updated.

    Raises `InvalidField` where there is no id, or an earlier line has the same one. 1 and "1" are the same: results are
    found by their ids on the command line, where both look alike.
    """
    if "id" not in fields:
        raise InvalidField('id is missing; give each line its own, as in {"id": 1}.', "id")
    id = fields["id"]
    if not isinstance(id, Id) or isinstance(id, bool):
        raise InvalidField(f"id is {shown(id)}, but it must be a text or a whole number.", "id")
    if str(id) in lines:
        raise InvalidField(f"id {shown(id)} is also that of line {lines[str(id)]}; give each line its own.", "id")
    lines[str(id)] = line
    return id


def request_prompt(fields: dict[str, Any]) -> tuple[str, str | list[int]]:
    """The name and the value of the prompt's field. Raises `InvalidField` unless there is exactly one of the two."""
    text, ids = fields.get("prompt"), fields.get("prompt_ids")
    if (text is None) == (ids is None):
        raise InvalidField("Give prompt, a text, or prompt_ids, token ids (one of the two).", "prompt")
    if text is not None:
        if not isinstance(text, str):
            raise InvalidField(f"prompt is {shown(text)}, but it must be a text; token ids go in prompt_ids.", "prompt")
        return "prompt", text
    # Booleans are integers in Python, hence `type` and not `isinstance`.
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise InvalidField(f"prompt_ids is {shown(ids)}, but it must be a list of token ids.", "prompt_ids")
    return "prompt_ids", ids

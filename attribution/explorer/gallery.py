"""The gallery: texts with their explanations that the package brings, which need no model to be shown.

`gallery.toml` describes the cases in the order in which they are listed; `cases/NAME.json` has their documents, which
`make cases` writes with the bundled model.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

_FIELDS = ("name", "category", "title", "text", "request", "state")


@cache
def descriptions() -> tuple[dict[str, Any], ...]:
    """The cases of `gallery.toml`: name, category, title and text in both languages, request, the state of the page,
    and for a comparison its further texts as `compare`."""
    content = (_folder() / "gallery.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(content).get("case", ()))


def listed() -> list[dict[str, Any]]:
    """What `/api/cases` says of each case."""
    return [
        {name: case[name] for name in _FIELDS if name in case}
        | {"compare": [other["name"] for other in case.get("compare", ())]}
        for case in descriptions()
    ]


def read_case(name: str) -> dict[str, Any] | None:
    """A case with its documents; None if there is none of this name."""
    case = next((case for case in descriptions() if case["name"] == name), None)
    if case is None:
        return None
    documents = json.loads((_folder() / "cases" / f"{name}.json").read_bytes())
    compare = [other | {"document": documents[other["name"]]} for other in case.get("compare", ())]
    return {**case, "document": documents["text"], "compare": compare}


def _folder():
    return files("steerling_jax.attribution.explorer")

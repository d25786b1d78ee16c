"""An explanation as one HTML file with its data, style and script, which loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_TITLE = 60  # characters


def make_page(document: Mapping[str, Any]) -> str:
    """The HTML page of a document (`document.make_document`)."""
    folder = files("steerling_jax.attribution.trace")
    words = " ".join(document["trace"]["prompt_text"].split())
    title = words if len(words) <= _TITLE else words[: _TITLE - 1] + "…"
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A text that contains "</script>" or "<!--" must not end the data's element. These characters occur in JSON only
    # inside strings, where their escapes mean the same.
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "data": data,
        "script": (folder / "page.js").read_text(encoding="utf-8"),
    }
    # The template is split before anything is inserted, so that "{{data}}" in a text is not taken for a placeholder.
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("{{")
    filled = [parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:])]
    return pieces[0] + "".join(filled)

"""An explanation as one HTML file that loads nothing: data, style and script inside."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def make_page(document: Mapping[str, Any]) -> str:
    """The page of a document (document.py). Whatever its texts hold, they cannot leave the element of the data."""
    here = files("steerling_jax.attribution.trace")
    words = " ".join(document["trace"]["prompt_text"].split())
    title = words if len(words) <= 60 else words[:59] + "…"
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "title": html.escape(title),
        "style": (here / "page.css").read_text(encoding="utf-8"),
        "data": data,
        "script": (here / "page.js").read_text(encoding="utf-8"),
    }
    # In pieces, so that nothing that is put in is looked through for further places.
    pieces = (here / "page.html").read_text(encoding="utf-8").split("{{")
    filled = [parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:])]
    return pieces[0] + "".join(filled)

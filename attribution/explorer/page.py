"""The explorer's page: the files that a server sends, and the same page with a text's explanation as one file.

Both run the same script and style. The file's policy names their hashes, so nothing else in it can run, and it has no
`connect-src`, so it loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

_TITLE = 60  # characters
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""
_NO_SCRIPT = "<noscript>This page needs JavaScript to show its data; it loads no files from elsewhere.</noscript>"
_LIVE = f"""\
{_HEAD}<title>steerling explore</title>
<link rel="icon" href="/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/explorer.css">
</head>
<body>
<div id="app"></div>
{_NO_SCRIPT}
<script src="/explorer.js" defer></script>
</body>
</html>
"""


class PageFile(NamedTuple):
    """A file that the server sends: its content, media type, and the value of its ETag header."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """The files of the live page, by path."""
    contents = {
        "/": (_LIVE.encode(), "text/html"),
        "/explorer.js": (_static("explorer.js"), "text/javascript"),
        "/explorer.css": (_static("explorer.css"), "text/css"),
        "/favicon.svg": (_static("favicon.svg"), "image/svg+xml"),
    }
    return {
        path: PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for path, (content, media_type) in contents.items()
    }


def make_page(document: Mapping[str, Any], state: str = "") -> str:
    """The page of an explanation (`trace.document.make_document`), or of a case of the gallery, as one HTML file.

    state: the fragment of an address, such as "#at=28&panel=inputs", with which the page opens where its own address
    has none.
    """
    words = " ".join(document.get("document", document)["trace"]["prompt_text"].split())
    title = words if len(words) <= _TITLE else words[: _TITLE - 1] + "…"
    # An end tag in the style or the script would end its element early; the build never writes one.
    style, script = _static("explorer.css").decode(), _static("explorer.js").decode()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    parts = (
        f'{_HEAD}<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f'<div id="app" data-state="{html.escape(state)}"></div>\n{_NO_SCRIPT}\n',
        f'<script type="application/json" id="document">{script_json(document)}</script>\n',
        f"<script>{script}</script>\n</body>\n</html>\n",
    )
    return "".join(parts)


def script_json(value: Any) -> str:
    """JSON for an element of an HTML page. A text that contains "</script>" or "<!--" must not end the element; these
    characters occur in JSON only inside strings, where their escapes mean the same."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return data


def _hash(content: str) -> str:
    """A source of a policy: the hash of an element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _static(name: str) -> bytes:
    return (files("steerling_jax.attribution.explorer") / "static" / name).read_bytes()

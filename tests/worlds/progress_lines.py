"""The lines about progress that a command prints on standard error every 30 seconds: a quick machine never does."""

from __future__ import annotations

import re

_LINE = re.compile(r"^.*, \d+:\d\d:\d\d\n?", re.MULTILINE)


def without_progress(printed: str) -> str:
    """What a command printed on standard error, without its lines about progress."""
    return _LINE.sub("", printed)

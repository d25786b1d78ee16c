"""Pages of docs/results whose tables are written from a JSON file of the same name.

Each table is between two marks, `<!-- NAME -->`. Tests compare the pages with the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import read_json_object

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def interval(one: Mapping[str, float], digits: int = 2) -> str:
    """A mean with its interval: `low` and `high`."""
    return f"{one['mean']:.{digits}f} ({one['low']:.{digits}f}–{one['high']:.{digits}f})"


def with_tables(page: str, parts: Mapping[str, str]) -> str:
    """The page with each table between its two marks."""
    for name, text in parts.items():
        mark = f"<!-- {name} -->"
        page, count = re.subn(
            rf"{re.escape(mark)}\n.*?{re.escape(mark)}",
            lambda _, m=mark, t=text: f"{m}\n\n{t}\n{m}",
            page,
            flags=re.DOTALL,
        )
        assert count == 1, f"the page has no place for {name}"
    return page


def write_page(name: str, tables: Callable[[Mapping[str, Any]], Mapping[str, str]]) -> None:
    """Writes the tables of NAME.json into NAME.md."""
    page = RESULTS / f"{name}.md"
    new = with_tables(page.read_text(encoding="utf-8"), tables(read_json_object(RESULTS / f"{name}.json")))
    with atomic_path(page) as scratch:
        scratch.write_text(new, encoding="utf-8")

"""Results that print as a short table, in a terminal and in a notebook, and become a pandas data frame.

A result gives a `Table` of all its facts and, where that has too many rows for a reader, another one to print.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerling_jax.errors import UserError

ROWS = 10  # rows that a printed table shows
_WIDTH = 48  # characters of a printed cell


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, with one line about them. Columns of numbers may be arrays."""

    title: str
    columns: Mapping[str, Sequence[Any] | np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def text(self, rows: int = ROWS) -> str:
        """The title and the first `rows` rows, in aligned columns."""
        shown = min(rows, len(self))
        cells = [[name, *map(_cell, column[:shown])] for name, column in self.columns.items()]
        widths = [max(map(_width, column)) for column in cells]
        right = [_is_numeric(column) for column in self.columns.values()]
        lines = [
            "  ".join(_padded(*cell) for cell in zip(row, widths, right, strict=True)).rstrip()
            for row in zip(*cells, strict=True)
        ]
        return "\n".join([self.title, *(lines if len(self) else ()), *self._rest(shown)])

    def html(self, rows: int = ROWS) -> str:
        """The same as an HTML table."""
        shown = min(rows, len(self))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_cell(value))}</td>' for value in row)}</tr>"
            for row in zip(*(column[:shown] for column in self.columns.values()), strict=True)
        )
        rest = "".join(f"<p>{line}</p>" for line in self._rest(shown))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if len(self) else ""
        return f"<div><p>{html.escape(self.title)}</p>{table}{rest}</div>"

    def to_dataframe(self) -> Any:
        """All rows as a `pandas.DataFrame`. Raises `UserError` without pandas."""
        try:
            import pandas
        except ImportError:
            raise UserError("A data frame needs pandas: pip install 'steerling-jax[pandas]'.") from None
        return pandas.DataFrame(dict(self.columns))

    def _rest(self, shown: int) -> list[str]:
        more = len(self) - shown
        return [f"… {counted(more, 'more row')}"] if more else []


class Tabular:
    """A mixin for results: `table` gives all their facts, and `summary` what is printed."""

    def table(self) -> Table:
        """Everything that the result says, one fact a row."""
        raise NotImplementedError

    def summary(self) -> Table:
        """What is printed."""
        return self.table()

    def __repr__(self) -> str:
        return self.summary().text()

    def _repr_html_(self) -> str | None:
        return self.summary().html()

    def to_dataframe(self) -> Any:
        """All facts as a `pandas.DataFrame`. Raises `UserError` without pandas."""
        return self.table().to_dataframe()


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it has one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def quoted(text: str, width: int = _WIDTH) -> str:
    """A text on one line, in quotes, cut to about `width` characters."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def _cell(value: Any) -> str:
    """A value as it is printed; floats with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}"
    if isinstance(value, int | np.integer):
        return str(int(value))
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(value))
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _is_numeric(column: Sequence[Any] | np.ndarray) -> bool:
    # Of a long column a few values are enough to tell.
    return all(isinstance(value, int | float | np.number | None) for value in column[:ROWS])


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """Columns that a terminal needs; letters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)

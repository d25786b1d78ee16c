"""Output of commands: notes and progress bars on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@functools.cache
def stderr() -> Console:
    """The console for notes and progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@functools.cache
def stdout() -> Console:
    """The console for reports."""
    from rich.console import Console

    return Console(highlight=False)


def note(text: str) -> None:
    """Prints one line on standard error, without interpreting markup."""
    stderr().print(text, markup=False, soft_wrap=True)


def progress_bar(*, unit: str = "", interval: float = 30.0) -> Progress:
    """A progress bar on standard error, which is removed when it is complete; a line every `interval` seconds where
    standard error is not a terminal.

    `with progress_bar(unit="tokens") as bar: task = bar.add_task("writing", total=64); bar.advance(task)`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if not stderr().is_terminal:
        from steerling_jax.cli.progress_lines import ProgressLines

        return ProgressLines(console=stderr(), unit=unit, interval=interval)
    # The default spinner consists of Braille patterns; rich itself replaces only the characters of bars and boxes.
    spinner = SpinnerColumn("dots" if stderr().encoding.startswith("utf") else "line")
    columns = [spinner, TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if unit:
        columns.append(TextColumn(unit))
    return Progress(*columns, TimeElapsedColumn(), console=stderr(), transient=True)


@contextlib.contextmanager
def stages(*, interval: float = 30.0) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage, see `progress_bar`: `with stages() as progress: progress("writing", 3, 8)`."""
    with progress_bar(interval=interval) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield progress


def print_json(value: Any) -> None:
    """Prints `value` as one JSON document on standard output; see `plain`."""
    # JSON has escapes of its own: those of Python, which `main` falls back to, are not valid in it.
    utf8 = (sys.stdout.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")
    print(json.dumps(plain(value), ensure_ascii=not utf8, indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """`value` in JSON's types: arrays become lists, dataclasses objects, NaN and infinities None, paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist") and not isinstance(value, type):  # arrays of NumPy and JAX, without importing either
        return plain(value.tolist())
    return str(value)

"""What a person sees of training: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from steerling_jax.cli.console import note, stderr

from .loop import Compiled, Evaluated, Event, Restored, Saved, Step
from .run_config import RunConfig


def show(events: Iterator[Event], run: RunConfig) -> Iterator[Event]:
    """Passes the events through, and shows them on standard error."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
    ]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    live = stderr().is_terminal
    with Progress(*columns, console=stderr(), transient=True, disable=not live) as bar:
        task = bar.add_task("preparing", total=run.steps, news="")
        told = time.monotonic()
        for event in events:
            match event:
                case Restored():
                    for step, reason in event.unreadable:
                        note(f"The checkpoint of step {step} cannot be read ({reason}); passed over.")
                    note(f"Going on from step {event.step}.")
                    bar.update(task, completed=event.step)
                case Compiled():
                    note(f"Compiled in {event.seconds:.1f} s.")
                    bar.update(task, description="training")
                case Step():
                    news = f"loss {event.metrics['loss']:.3f}  {event.tokens_per_second:,.0f} tokens/s"
                    bar.update(task, completed=event.step, news=news)
                    if not live and (time.monotonic() - told > 10 or event.step in (1, run.steps)):
                        told = time.monotonic()
                        note(f"step {event.step}/{run.steps}  {news}")
                case Evaluated():
                    numbers = "  ".join(f"{name} {value:.4g}" for name, value in _numbers(event.results))
                    note(f"step {event.step}: {numbers}")
                case Saved():
                    bar.update(task, description=f"training (saved {event.step})")
            yield event


def _numbers(results: Any) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in results.items() if isinstance(value, int | float))

"""What a person sees of training: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from steerling_jax.cli.console import note, stderr
from steerling_jax.train.run.events import (
    Began,
    Compiled,
    Done,
    Evaluated,
    Event,
    Profiled,
    Saved,
    Spike,
    Step,
    Stopped,
)
from steerling_jax.train.run.run_config import RunConfig


def show(events: Iterator[Event], run: RunConfig, *, tables: bool = True) -> Iterator[Event]:
    """Passes the events through, and shows them on standard error; with `tables`, where the time went too."""
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
                case Began():
                    for step, reason in event.unreadable:
                        note(f"The checkpoint of step {step} cannot be read ({reason}); passed over.")
                    if event.step:
                        note(f"Going on from step {event.step}.")
                    for number, what in enumerate(event.order, start=1):
                        note(f"  {number}. {what}")
                    bar.update(task, completed=event.step)
                case Compiled():
                    note(f"Compiled in {event.seconds:.1f} s.")
                    bar.update(task, description="training")
                case Step():
                    news = f"loss {event.metrics['loss']:.3f}"
                    news += f"  {event.tokens_per_second:,.0f} tokens/s" if event.tokens_per_second else ""
                    news += "" if event.mfu is None else f"  MFU {event.mfu:.1%}"
                    bar.update(task, completed=event.step, news=news)
                    if not live and (time.monotonic() - told > 10 or event.step in (1, run.steps)):
                        told = time.monotonic()
                        note(f"step {event.step}/{run.steps}  {news}")
                case Spike():
                    told_of = ", ".join(map(str, event.sequences[:8])) + (", …" if len(event.sequences) > 8 else "")
                    note(
                        f"The loss leapt at step {event.step}: {event.loss:.3f}, where {event.median:.3f} is usual; "
                        f"its sequences were {told_of}."
                    )
                case Evaluated():
                    numbers = "  ".join(f"{name} {value:.4g}" for name, value in _numbers(event.results))
                    note(f"step {event.step}: {numbers}")
                case Saved():
                    bar.update(task, description=f"training (saved {event.step})")
                case Profiled():
                    note(f"A profiler trace is in {event.folder}.")
                case Stopped() | Done() if tables:
                    stderr().print(_time_table(event.clock))
            yield event


def _numbers(results: Any) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in results.items() if isinstance(value, int | float))


def _time_table(clock: Mapping[str, Any]) -> Any:
    """Seconds by phase, over all starts of the run."""
    from rich.table import Table

    seconds = clock["seconds"]
    everything = sum(seconds.values())
    starts = f"{clock['starts']} starts" if clock["starts"] > 1 else "1 start"
    table = Table(title=f"Time, {starts}", title_justify="left", show_footer=True, box=None, padding=(0, 1, 0, 0))
    table.add_column("phase", footer="all")
    table.add_column("seconds", justify="right", footer=f"{everything:,.1f}")
    table.add_column("share", justify="right")
    for phase, value in seconds.items():
        table.add_row(phase, f"{value:,.1f}", f"{value / everything:.1%}")
    return table

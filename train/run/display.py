"""Displays the events of training on standard error: a progress bar on a terminal, otherwise lines now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.console import note, stderr
from steerling_jax.train.run.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    LossSpike,
    RunFinished,
    RunStarted,
    RunStopped,
    StepCompiled,
    StepDone,
    TraceWritten,
)

if TYPE_CHECKING:
    from rich.progress import Progress

MAX_SEQUENCES = 8  # in the message about a spike
LINE_SECONDS = 10  # between two lines, where there is no terminal


def display(events: Iterator[Event], steps: int, *, tables: bool = True) -> Iterator[Event]:
    """Yields the events unchanged and displays each. steps: of the run. tables: print the time by phase at the end."""
    with _progress_bar() as bar:
        task = bar.add_task("preparing", total=steps, status="")
        last_line = time.monotonic()
        for event in events:
            match event:
                case RunStarted():
                    _note_start(event)
                    bar.update(task, completed=event.step)
                case StepCompiled():
                    note(f"Compiled in {event.seconds:.1f} s.")
                    bar.update(task, description="training")
                    if not stderr().is_terminal:
                        bar.stop()  # from here on, the lines are those of the steps
                case StepDone():
                    status = _status(event)
                    bar.update(task, completed=event.step, status=status)
                    due = time.monotonic() - last_line > LINE_SECONDS or event.step in (1, steps)
                    if due and not stderr().is_terminal:
                        last_line = time.monotonic()
                        note(f"step {event.step}/{steps}  {status}")
                case LossSpike():
                    note(_describe_spike(event))
                case Evaluated():
                    numbers = "  ".join(f"{name} {value:.4g}" for name, value in _numbers(event.results))
                    note(f"step {event.step}: {numbers}")
                case CheckpointSaved():
                    bar.update(task, description=f"training (saved {event.step})")
                case TraceWritten():
                    note(f"The profiler trace is in {event.folder}.")
                case RunStopped() | RunFinished() if tables:
                    stderr().print(_time_table(event.clock))
            yield event


def _progress_bar() -> Progress:
    """A progress bar on standard error, or lines now and then where that is not a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from steerling_jax.cli.progress_lines import ProgressLines

    if not stderr().is_terminal:
        return ProgressLines(console=stderr())
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    )


def _note_start(event: RunStarted) -> None:
    for step, reason in event.unreadable:
        note(f"The checkpoint of step {step} cannot be read ({reason}); skipping it.")
    if event.step:
        note(f"Resuming from step {event.step}.")
    for number, source in enumerate(event.sources, start=1):
        note(f"  {number}. {source}")


def _status(event: StepDone) -> str:
    """Loss and speed, in one line."""
    status = f"loss {event.metrics['loss']:.3f}"
    status += f"  {event.tokens_per_second:,.0f} tokens/s" if event.tokens_per_second else ""
    return status + ("" if event.mfu is None else f"  MFU {event.mfu:.1%}")


def _describe_spike(event: LossSpike) -> str:
    sequences = ", ".join(map(str, event.sequences[:MAX_SEQUENCES]))
    sequences += ", …" if len(event.sequences) > MAX_SEQUENCES else ""
    return (
        f"Loss spike at step {event.step}: {event.loss:.3f}, where the recent median is {event.median:.3f}; "
        f"sequences of the batch: {sequences}."
    )


def _numbers(results: Any) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in results.items() if isinstance(value, int | float))


def _time_table(clock: Mapping[str, Any]) -> Any:
    """A table of seconds by phase, over all starts of the run."""
    from rich.table import Table

    seconds = clock["seconds"]
    total = sum(seconds.values())
    starts = f"{clock['starts']} starts" if clock["starts"] > 1 else "1 start"
    table = Table(title=f"Time, {starts}", title_justify="left", show_footer=True, box=None, padding=(0, 1, 0, 0))
    table.add_column("phase", footer="all")
    table.add_column("seconds", justify="right", footer=f"{total:,.1f}")
    table.add_column("share", justify="right")
    for phase, value in seconds.items():
        table.add_row(phase, f"{value:,.1f}", f"{value / total:.1%}")
    return table

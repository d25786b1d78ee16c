"""Progress of commands whose standard error is not a terminal: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from steerling_jax.cli.console import progress_bar, stages


def wait_for(read: Callable[[], str]) -> str:
    """The first output of a thread, which a slow machine may print late."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if text := read():
            return text
        time.sleep(0.01)
    raise AssertionError("nothing was printed")


def test_lines_show_the_unfinished_stages(capsys: pytest.CaptureFixture[str]):
    with stages(interval=0.01) as progress:
        assert wait_for(lambda: capsys.readouterr().err).startswith("working, 0:00:")  # before the first report
        progress("reading", 3, 3)
        progress("writing", 1, 2000)
        capsys.readouterr()
        wait_for(lambda: capsys.readouterr().err)  # a line that began before the reports
        assert wait_for(lambda: capsys.readouterr().err).splitlines()[0].startswith("writing 1/2,000, 0:00:")
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")  # it ends with the command


def test_units_and_hidden_stages(capsys: pytest.CaptureFixture[str]):
    with progress_bar(unit="blocks", interval=0.01) as bar:
        task = bar.add_task("writing", total=8)
        bar.add_task("hidden", visible=False)
        bar.update(task, completed=5)
        wait_for(lambda: capsys.readouterr().err)
        assert wait_for(lambda: capsys.readouterr().err).startswith("writing 5/8 blocks, 0:00:")
        bar.stop()
        capsys.readouterr()
        time.sleep(0.1)
        assert capsys.readouterr().err == ""


def test_short_commands_print_no_line(capsys: pytest.CaptureFixture[str]):
    with stages() as progress:
        progress("reading", 1, 3)
    assert capsys.readouterr() == ("", "")


def test_an_error_ends_the_lines(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="no"), stages(interval=0.01):
        raise ValueError("no")
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""

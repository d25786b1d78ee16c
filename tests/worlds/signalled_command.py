"""Runs a `steerling` command that sends itself a signal: `signalled_command.py SIGNAL NUMBER PATTERN WORDS…`.

A test that kills a program in the middle of its work must not depend on when the test's own process runs. The signal
comes when the program is about to open or rename the NUMBER-th file (from 1) whose path, or new path, matches PATTERN;
for SIGKILL this is the last thing that the program does.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any


def signalled_command(signal: int, number: int, pattern: str) -> list[str]:
    """The words that start `steerling` in a process that sends itself a signal."""
    return [sys.executable, "-P", str(Path(__file__)), str(int(signal)), str(number), pattern]


def signal_at(signal: int, number: int, pattern: str) -> str:
    """Python code that does the same in a program of another kind."""
    return f"import runpy; runpy.run_path({__file__!r})['send_signal_at']({number}, {pattern!r}, {int(signal)})"


def send_signal_at(number: int, pattern: str, signal: int) -> None:
    """Sends `signal` to this process at the `number`-th opening or renaming of a file whose path matches `pattern`."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename"):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, str | os.PathLike) and re.search(pattern, os.fspath(path)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal)

    sys.addaudithook(hook)


if __name__ == "__main__":
    from steerling_jax.cli.main import main

    send_signal_at(int(sys.argv[2]), sys.argv[3], int(sys.argv[1]))
    sys.exit(main(sys.argv[4:]))

"""Runs a `steerling` command whose decoder stops where a test says: `held_command.py FILE WORDS…`.

A test that needs "the text is not finished yet" must not depend on how fast the machine is. While FILE exists, as many
calls of `Decoder.advance` as the number in it decode; further calls return no events, so that the program goes on with
its own work. A second word names the hold: calls of another hold do not count. With the word "wait" in FILE a call does
not return before FILE is gone. Without FILE nothing is changed. While FILE.fails exists, what explains a text in the
explorer fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from steerling_jax.attribution.explorer.jobs import Explainer, Job
from steerling_jax.cli.main import main
from steerling_jax.decoding.decoder import Decoder
from steerling_jax.errors import UserError

PAUSE = 0.002  # seconds that a held call takes, so that the program does not spin


def hold(file: Path) -> None:
    """Makes every decoder of this process heed `file`."""
    advance, used, last = Decoder.advance, 0, ""

    def held(self: Decoder, steps: int | None = None) -> list:
        nonlocal used, last
        while (content := read(file)) == "wait":
            time.sleep(PAUSE)
        if content is None:
            used = 0
            return advance(self, steps)
        allowed, _, name = content.partition(" ")
        if name != last:  # a released hold of which this decoder noticed nothing, because it had no work
            used, last = 0, name
        if used < int(allowed):
            used += 1
            return advance(self, steps)
        time.sleep(PAUSE)
        return []

    Decoder.advance = held  # type: ignore[method-assign]


def fail(file: Path) -> None:
    """Makes every explanation of this process fail while `file` exists."""
    submit = Explainer.submit

    def submitted(self: Explainer, key, rank, work, owner: str) -> Job:
        def failing(progress):
            if file.exists():
                raise UserError("The explanation failed.")
            return work(progress)

        return submit(self, key, rank, failing, owner)

    Explainer.submit = submitted  # type: ignore[method-assign]


def read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    fail(Path(f"{sys.argv[1]}.fails"))
    sys.exit(main(sys.argv[2:]))

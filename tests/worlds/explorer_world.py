"""Explorers in processes of their own."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.worlds.progress_lines import without_progress
from tests.worlds.serving_world import PATIENCE, HeldProcess, held_command


@dataclass
class RunningExplorer(HeldProcess):
    """A running `steerling explore`. lines: of its standard error, those after the address."""

    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Explanations that begin within the block fail."""
        assert self.file is not None
        fails = Path(f"{self.file}.fails")
        fails.touch()
        try:
            yield
        finally:
            fails.unlink()

    def wait_until_ready(self) -> None:
        while self.get("/health").status_code != 200:
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)


@contextmanager
def exploring(
    model: Path, environment: Mapping[str, str], *options: str, port: int = 0, file: Path | None = None
) -> Iterator[RunningExplorer]:
    """Starts an explorer and yields it once it says its address, before its model is loaded. At the end it must stop
    by itself, with exit code 0 and no other lines on standard error, unless the test stopped it."""
    line = [*held_command(file), "explore", "--model", str(model), "--port", str(port), *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=dict(environment)) as process:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert process.stderr is not None
        reader = threading.Thread(
            target=lambda stream: [lines.put(text) for text in stream if without_progress(text)], args=(process.stderr,)
        )
        reader.start()
        try:
            first = lines.get(timeout=PATIENCE)
            found = re.search(r"(http://[^\s/]+)/", first)
            assert found, first
            explorer = RunningExplorer(process, found[1], file)
            yield explorer
            if process.poll() is None:
                assert explorer.stop() == 0
            reader.join()
            while not lines.empty():
                explorer.lines.append(lines.get())
            other = [text for text in explorer.lines if text.strip() != "The model is ready."]
            assert not other, "".join(other)
        finally:
            process.kill()
            reader.join()

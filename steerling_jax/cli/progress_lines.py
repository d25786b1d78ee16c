"""Progress where there is no terminal, such as in a file or a batch system's log: a line now and then."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import Progress


class ProgressLines(Progress):
    """A progress display that prints a line every `interval` seconds, in place of a bar that is redrawn.

    The lines come from a thread, so that a stage without reports, such as a compilation of minutes, has them too. A
    command that ends earlier prints none.
    """

    def __init__(self, *, console: Console, unit: str = "", interval: float = 30.0):
        super().__init__(console=console, disable=True)
        self._unit = unit
        self._interval = interval
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopped.clear()
        self._started = self.get_time()
        # A daemon: an error that skips `stop` must not keep the process alive.
        self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _print_lines(self) -> None:
        while not self._stopped.wait(self._interval):
            self.console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The unfinished stages with their counts, and the time since the start: `writing 3/8 blocks, 0:01:30`."""
        # A copy: the thread of the computation adds tasks meanwhile.
        unfinished = [task for task in list(self.tasks) if task.visible and not task.finished]
        stages = []
        for task in unfinished:
            counts = "" if task.total is None else f" {task.completed:,.0f}/{task.total:,.0f} {self._unit}".rstrip()
            stages.append(f"{task.description}{counts}")
        minutes, seconds = divmod(int(self.get_time() - self._started), 60)
        return f"{', '.join(stages) or 'working'}, {minutes // 60}:{minutes % 60:02}:{seconds:02}"

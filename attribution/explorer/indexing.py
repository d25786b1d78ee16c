"""The job that makes an index: begun by a tab, followed by every tab that asks for it, stopped when none does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer.index_job import IndexMaker
from steerling_jax.attribution.explorer.jobs import Job, JobKey, Rank
from steerling_jax.attribution.explorer.tabs import Tab, Tabs
from steerling_jax.attribution.explorer.training_data import TrainingData
from steerling_jax.infer.server.errors import ApiError, as_api_error

KEY = JobKey("", "index")
ID = "index"


class Indexing:
    """All methods are for the event loop's thread. use: takes each index that is made. call: runs a function with its
    arguments on the event loop, from any thread."""

    def __init__(
        self,
        maker: IndexMaker | None,
        tabs: Tabs,
        use: Callable[[TrainingData], None],
        call: Callable[..., Any],
    ):
        self._maker, self._tabs, self._use, self._call = maker, tabs, use, call
        self._job: Job | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def possible(self) -> bool:
        return self._maker is not None

    def begin(self, tab: Tab) -> str:
        """Begins the job, or lets the tab follow the one that runs; returns its id."""
        if self._maker is None:
            raise ApiError(409, "An index cannot be made here; start with --index.", code="no_index")
        if self._job is None:
            self._job, self._stopped = Job(KEY, Rank.EXPORT, lambda progress: None), threading.Event()
            arguments = (self._maker, self._job, self._stopped)
            # A daemon: the commands are ended by `close`, and by themselves where this process is killed.
            self._thread = threading.Thread(target=self._run, args=arguments, name="indexing", daemon=True)
            self._thread.start()
        self._job.owners.add(tab.id)
        return ID

    def leave(self, tab: Tab) -> bool:
        """The tab does not wait any more; without followers the job is stopped. Returns whether it waited."""
        if self._job is None or tab.id not in self._job.owners:
            return False
        self._job.owners.discard(tab.id)
        if not self._job.owners:
            self._stopped.set()
            self._job = None
        return True

    def close(self) -> None:
        """Stops the job and waits for its commands."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, maker: IndexMaker, job: Job, stopped: threading.Event) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            self._call(self._send, job, "progress", {"stage": stage, "done": done, "of": total})

        try:
            maker.run(progress, lambda data: self._call(self._made, job, data), stopped)
        except Exception as error:
            self._call(self._failed, job, as_api_error(error))
        else:
            self._call(self._end, job)

    def _made(self, job: Job, data: TrainingData) -> None:
        self._use(data)
        self._send(job, "ready", {"href": "/api/model"})

    def _failed(self, job: Job, error: ApiError) -> None:
        self._send(job, "failed", error.body())
        self._end(job)

    def _end(self, job: Job) -> None:
        if self._job is job:
            self._job = None

    def _send(self, job: Job, event: str, data: dict[str, Any]) -> None:
        about = {"job": ID, "kind": "index", "text": None, "at": None}
        for tab in self._tabs.of(job.owners):
            tab.log.add(event, about | data, numbered=event != "progress")

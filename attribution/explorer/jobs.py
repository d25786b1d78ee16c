"""The explaining thread: one job at a time, the most urgent first, behind the writing of texts.

A job reports progress before every call of the device. In this report it waits while a text is being written, since
both would share the processors, and it is cancelled there by an exception. Jobs that warm up wait until nobody has
asked for anything for a moment, and are postponed in their reports, to begin again later, as soon as somebody does.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from steerling_jax.progress import Progress

log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds in a row that a job waits for writing; a server that always writes would never explain
_LOOK_AGAIN = 0.005  # seconds
_QUIET = 1.0  # seconds without a text and a job before a job warms up; a user who asks again soon need not wait for it


class Rank(IntEnum):
    """The order of jobs, most urgent first."""

    CONCEPTS = 0
    STEP = 1
    TOKEN_INPUTS = 2
    INPUTS = 3
    EVIDENCE = 4
    ALL_STEPS = 5
    COST = 6
    INFLUENCE = 7
    EXPORT = 8
    WARM_UP = 9


class Cancelled(Exception):
    """Nobody waits for the job's result any more."""


class _Postponed(Exception):
    """The job warms up, and somebody asks for something: it begins again later."""


class JobKey(NamedTuple):
    """What a job computes: equal keys have equal results. at: positions, a step, or another detail of the kind."""

    text: str
    kind: str
    at: Hashable = None


@dataclass(eq=False)
class Job:
    """work: computes the result, given a progress callback. owners: who waits for it; without them it is cancelled."""

    key: JobKey
    rank: Rank
    work: Callable[[Progress], Any]
    owners: set[str] = field(default_factory=set)
    number: int = 0

    @property
    def id(self) -> str:
        return f"j_{self.number}"


# What happened to a job: "progress" with (stage, done, total), "ready" with the result, "failed" with the exception,
# "cancelled" with None.
Report = Callable[[Job, str, Any], None]


class Explainer:
    """The thread. `submit` and `abandon` are for any other thread; reports come from this one.

    writing: whether a text is being written at this moment.
    """

    def __init__(self, report: Report, writing: Callable[[], bool]):
        self._report, self._writing = report, writing
        self._jobs: dict[JobKey, Job] = {}  # waiting ones, and the running one
        self._running: Job | None = None
        self._turns: dict[str, int] = {}  # of each owner: when it was served last
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._closing = False
        self._busy_at = time.monotonic()  # when a text was written, or a job was there that somebody asked for
        self._thread = threading.Thread(target=self._run, name="explainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Cancels everything and waits for the thread, at most until the device has finished its call."""
        with self._changed:
            self._closing = True
            for job in self._jobs.values():
                job.owners.clear()
            self._changed.notify_all()
        self._thread.join()

    def submit(self, key: JobKey, rank: Rank, work: Callable[[Progress], Any], owner: str) -> Job:
        """Adds a job, or an owner to the job with this key that waits or runs."""
        with self._changed:
            job = self._jobs.get(key)
            # A job without owners is about to end as cancelled; who asks again gets a job of their own.
            if job is None or not job.owners:
                job = self._jobs[key] = Job(key, rank, work, number=next(self._numbers))
            job.owners.add(owner)
            job.rank = min(job.rank, rank)
            self._changed.notify_all()
            return job

    def abandon(self, job: Job, owner: str) -> None:
        """The owner does not wait any more. Without owners, a waiting job is dropped and a running one cancelled."""
        with self._changed:
            job.owners.discard(owner)
            if job.owners or self._jobs.get(job.key) is not job or job is self._running:
                return
            del self._jobs[job.key]
        self._report(job, "cancelled", None)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                outcome: tuple[str, Any] = ("ready", job.work(partial(self._checkpoint, job)))
            except Cancelled:
                outcome = ("cancelled", None)
            except _Postponed:
                with self._changed:
                    self._running = None
                continue
            except Exception as error:  # the thread must survive it, to serve the other jobs
                outcome = ("failed", error)
            with self._changed:
                self._running = None
                if self._jobs.get(job.key) is job:
                    del self._jobs[job.key]
                if job.rank != Rank.WARM_UP:
                    self._busy_at = time.monotonic()
            self._report(job, *outcome)

    def _next(self) -> Job | None:
        """Waits for the most urgent job; among equals, that of the owner who was served longest ago."""
        with self._changed:
            while not self._closing:
                if not self._jobs:
                    self._turns.clear()
                    self._changed.wait()
                    continue
                job = min(self._jobs.values(), key=self._order)
                if job.rank == Rank.WARM_UP and (seconds := self._seconds_until_quiet()) > 0:
                    self._changed.wait(seconds)
                    continue
                for owner in job.owners:
                    self._turns[owner] = job.number
                self._running = job
                return job
            return None

    def _seconds_until_quiet(self) -> float:
        """How long to wait before a job may warm up; 0 where nobody has asked for anything for a moment."""
        now = time.monotonic()
        if self._writing() or any(job.rank != Rank.WARM_UP for job in self._jobs.values()):
            self._busy_at = now
        return self._busy_at + _QUIET - now

    def _order(self, job: Job) -> tuple[int, int, int]:
        return job.rank, min((self._turns.get(owner, 0) for owner in job.owners), default=0), job.number

    def _checkpoint(self, job: Job, stage: str, done: int, total: int) -> None:
        """The job's progress: reports it, lets writing go first, and cancels the job if nobody waits for it."""
        if job.rank == Rank.WARM_UP and job.owners:
            with self._changed:
                if self._seconds_until_quiet() > 0:
                    raise _Postponed
            return
        self._report(job, "progress", (stage, done, total))
        deadline = time.monotonic() + _PATIENCE
        while job.owners and self._writing() and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)
        if not job.owners:
            raise Cancelled

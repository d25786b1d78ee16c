"""Runs the stages in this process or in several local processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.stages.staged_work import StagedWork
from steerling_jax.io.storage import StoragePath
from steerling_jax.progress import Progress

_QUEUED = 4  # submitted tasks per process; the task list of large work is never submitted as a whole


class WorkerKilled(UserError):
    """A local worker process was killed. Completed tasks are kept, and the same command resumes."""


def run_locally(staged: StagedWork, work: StoragePath, workers: int, progress: Progress) -> None:
    """Runs all stages in this process (one worker) or in `workers` child processes.

    Raises `WorkerKilled` if a child process ends unexpectedly, and what a task raises.
    """
    if workers == 1:
        for number, name in enumerate(staged.names):
            tasks = staged.tasks(number, work)
            _report((staged.run(number, work, task) for task in tasks), name, len(tasks), progress)
        return
    # "spawn" and not "fork": TensorStore's thread pool does not survive a fork, and its operations would never finish.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, name in enumerate(staged.names):
            tasks = staged.tasks(number, work)
            try:
                _report(_run_in_pool(pool, staged, number, work, tasks, workers), name, len(tasks), progress)
            except BrokenProcessPool as error:
                raise WorkerKilled(
                    f"A worker process was killed in the stage {name!r}, possibly for lack of memory: run the "
                    f"same command again to resume; {staged.memory}."
                ) from error


def _run_in_pool(
    pool: ProcessPoolExecutor, staged: StagedWork, stage: int, work: StoragePath, tasks: Sequence[Any], workers: int
) -> Iterator[None]:
    """Runs the tasks with a bounded number of them submitted; yields after each completed one."""
    remaining = iter(tasks)
    submitted = {pool.submit(staged.run, stage, work, task) for task in islice(remaining, workers * _QUEUED)}
    try:
        while submitted:
            future = next(as_completed(submitted))
            submitted.remove(future)
            future.result()
            submitted |= {pool.submit(staged.run, stage, work, task) for task in islice(remaining, 1)}
            yield
    finally:
        # After an error the pool waits for its tasks before it closes: cancel those that have not started.
        for future in submitted:
            future.cancel()


def _report(completed: Iterable[None], stage: str, total: int, progress: Progress) -> None:
    progress(stage, 0, total)
    for count, _ in enumerate(completed, 1):
        progress(stage, count, total)

"""Who runs the stages: this process, several here, or Apache Beam on its local runner, Dataflow, Flink or Spark."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from steerling_jax.errors import UserError, first_line
from steerling_jax.io.storage import StoragePath
from steerling_jax.progress import Progress
from steerling_jax.train.prepare.job import open_job
from steerling_jax.train.prepare.stages import STAGES

_QUEUED = 4  # tasks a process that wait for it: the list of a large corpus is never all in flight


def tasks_of(stage: int, work: StoragePath) -> list[Any]:
    """What is still to do of a stage."""
    return STAGES[stage].tasks(open_job(work))


def run_task(stage: int, work: StoragePath, task: Any) -> None:
    STAGES[stage].run(open_job(work), task)


class WorkerKilled(UserError):
    """A process of ours was ended from outside; what all had done is there."""


def run_here(work: StoragePath, workers: int, tell: Progress) -> None:
    """In this process (one worker), or in so many others."""
    if workers == 1:
        for number in range(len(STAGES)):
            tasks = tasks_of(number, work)
            _follow((run_task(number, work, task) for task in tasks), STAGES[number].name, len(tasks), tell)
        return
    # Processes are begun anew, not forked: TensorStore's threads would be missing in a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number in range(len(STAGES)):
            tasks = tasks_of(number, work)
            try:
                _follow(_in_pool(pool, number, work, tasks, workers), STAGES[number].name, len(tasks), tell)
            except BrokenProcessPool as error:
                raise WorkerKilled(
                    f"A worker was killed while {STAGES[number].name}, perhaps for memory: the same command goes on "
                    "from there; fewer --workers or smaller --part-bytes need less."
                ) from error


def _in_pool(
    pool: ProcessPoolExecutor, stage: int, work: StoragePath, tasks: Sequence[Any], workers: int
) -> Iterator[None]:
    left = iter(tasks)
    waiting = {pool.submit(run_task, stage, work, task) for task in islice(left, workers * _QUEUED)}
    try:
        while waiting:
            done = next(as_completed(waiting))
            waiting.remove(done)
            done.result()
            waiting |= {pool.submit(run_task, stage, work, task) for task in islice(left, 1)}
            yield
    finally:
        for future in waiting:
            future.cancel()


def _follow(done: Iterable[None], stage: str, total: int, tell: Progress) -> None:
    tell(stage, 0, total)
    for count, _ in enumerate(done, 1):
        tell(stage, count, total)


def run_on_beam(work: StoragePath, runner: str, options: Sequence[str]) -> None:
    """As one Beam pipeline. Its collections hold tasks' names, never text or tokens; a count of what is done is all
    that a stage waits for."""
    pipeline = _pipeline(runner, options)
    import apache_beam as beam

    done = pipeline | beam.Create([0])
    for number, stage in enumerate(STAGES):
        done = (
            done
            | f"{stage.name}: tasks" >> beam.FlatMap(lambda _, number=number: tasks_of(number, work))
            | f"{stage.name}: spread" >> beam.Reshuffle()
            | f"{stage.name}: work" >> beam.Map(lambda task, number=number: run_task(number, work, task))
            | f"{stage.name}: all done" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
        )
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # Beam tells what a worker raised as a text, with the worker's traceback
        if said := re.findall(r"UserError: (.+?)(?: \[while running|\n|$)", str(error)):
            raise UserError(said[-1]) from error
        if isinstance(error, ImportError):
            raise _not_loaded(runner, error) from error
        raise


def _pipeline(runner: str, options: Sequence[str]) -> Any:
    """An empty pipeline. Raises `UserError` for a runner or for options that Beam does not take."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            f"--runner {runner} needs Apache Beam: pip install 'steerling-jax[beam]', or leave --runner away."
        ) from None
    arguments = [f"--runner={runner}", *(f"--{option}" for option in options)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # it would print all the options that there are, and exit
            PipelineOptions(arguments).get_all_options()
        return beam.Pipeline(options=PipelineOptions(arguments))
    except SystemExit as error:
        raise UserError(f"--runner-options: {said.getvalue().rpartition('error: ')[2].strip()}.") from error
    except (ImportError, AttributeError) as error:
        raise _not_loaded(runner, error) from error
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"Beam refuses --runner {runner} with these --runner-options: {reason}.") from error


def _not_loaded(runner: str, error: Exception) -> UserError:
    return UserError(
        f"--runner {runner} cannot be loaded, {first_line(error)}: correct its name, or install what it needs (for "
        "DataflowRunner: pip install 'apache-beam[gcp]')."
    )

"""Runs the stages as one Apache Beam pipeline: on its local runner, Dataflow, Flink or Spark."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.stages.staged_work import StagedWork
from steerling_jax.io.storage import StoragePath


def run_on_beam(staged: StagedWork, work: StoragePath, runner: str, options: Sequence[str]) -> None:
    """Runs all stages on a Beam runner, with pipeline options NAME=VALUE.

    Raises `UserError` for a runner or options that Beam rejects, and for one that a task raised on a worker.
    """
    pipeline = _pipeline(runner, options)
    import apache_beam as beam

    # Documents, tokens and features never pass through Beam: its collections hold the tasks' names. Each stage starts
    # from one element, the count of completed tasks of the stage before. The count is a barrier: a global combination
    # yields its result only when all its inputs are processed. It also yields 0 for a stage without tasks, so that
    # the next stage starts. FlatMap lists a stage's tasks on a worker, after the barrier, because they depend on
    # earlier stages. Reshuffle prevents Beam from fusing listing and work into one step, which would run all tasks on
    # one worker.
    count = pipeline | beam.Create([0])
    for number, name in enumerate(staged.names):
        count = (
            count
            | f"{name}: tasks" >> beam.FlatMap(lambda _, number=number: staged.tasks(number, work))
            | f"{name}: spread" >> beam.Reshuffle()
            | f"{name}: work" >> beam.Map(lambda task, number=number: staged.run(number, work, task))
            | f"{name}: all done" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
        )
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        # Beam re-raises a worker's exception as another type whose text contains the worker's traceback.
        if messages := re.findall(r"UserError: (.+?)(?: \[while running|\n|$)", str(error)):
            raise UserError(messages[-1]) from error
        if isinstance(error, ImportError):
            raise _not_loaded(runner, error) from error
        raise


def _pipeline(runner: str, options: Sequence[str]) -> Any:
    """An empty pipeline. Raises `UserError` for a runner or for options that Beam rejects."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            f"--runner {runner} needs Apache Beam: pip install 'steerling-jax[beam]', or omit --runner."
        ) from None
    arguments = [f"--runner={runner}", *(f"--{option}" for option in options)]
    usage = io.StringIO()
    try:
        # For an invalid option, Beam's parser prints the usage of all its options to stderr and exits.
        with contextlib.redirect_stderr(usage):
            PipelineOptions(arguments).get_all_options()
        return beam.Pipeline(options=PipelineOptions(arguments))
    except SystemExit as error:
        raise UserError(f"--runner-options: {usage.getvalue().rpartition('error: ')[2].strip()}.") from error
    except (ImportError, AttributeError) as error:
        raise _not_loaded(runner, error) from error
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"Beam rejects --runner {runner} with these --runner-options: {reason}.") from error


def _not_loaded(runner: str, error: Exception) -> UserError:
    return UserError(
        f"--runner {runner} cannot be loaded, {error_summary(error)}: correct its name, or install its dependencies "
        "(for DataflowRunner: pip install 'apache-beam[gcp]')."
    )

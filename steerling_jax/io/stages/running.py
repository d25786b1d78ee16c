"""Runs staged work with what a `RunnerConfig` names."""

from __future__ import annotations

from steerling_jax.io.stages.beam import run_on_beam
from steerling_jax.io.stages.local import run_locally
from steerling_jax.io.stages.staged_work import RunnerConfig, StagedWork
from steerling_jax.io.storage import StoragePath
from steerling_jax.progress import Progress


def run_stages(staged: StagedWork, work: StoragePath, runner: RunnerConfig, progress: Progress) -> None:
    """Runs all stages. progress: called with stage, completed tasks and total; never on a Beam runner.

    Raises `UserError` that a task raises, and for a runner that cannot be used.
    """
    if runner.beam_runner is None:
        run_locally(staged, work, runner.workers, progress)
    else:
        run_on_beam(staged, work, runner.beam_runner, runner.beam_options)

"""The stages of a preparation, in order.

A stage is a list of small, independent tasks, and starts when all tasks of the stage before are complete. A task reads
files, writes files, and writes the same content whenever and wherever it runs; a task whose output exists is not listed
again. Therefore an interrupted preparation resumes with the tasks that are left, nothing is shuffled between workers,
no worker holds more than one part or one shard, and the store does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steerling_jax.io.stages.staged_work import StagedWork
from steerling_jax.io.storage import StoragePath
from steerling_jax.train.prepare import assembly, duplicates, labelling, splitting, survey, vocabulary
from steerling_jax.train.prepare.preparation import Preparation, open_preparation


@dataclass(frozen=True)
class Stage:
    """tasks: lists the tasks that are not complete. run: does one of them."""

    name: str
    tasks: Callable[[Preparation], list[Any]]
    run: Callable[[Preparation, Any], None]


STAGES = (
    Stage("reading", survey.survey_tasks, survey.survey_part),
    Stage("counting", survey.count_tasks, survey.count_all),
    Stage("comparing", duplicates.range_tasks, duplicates.find_duplicates),
    Stage("splitting", splitting.cluster_tasks, splitting.cluster_documents),
    Stage("making the vocabulary", vocabulary.vocabulary_tasks, vocabulary.train_vocabulary),
    Stage("learning labels", labelling.annotator_tasks, labelling.build_annotator),
    Stage("tokens and labels", labelling.label_tasks, labelling.label_part),
    Stage("laying out", assembly.layout_tasks, assembly.write_layout),
    Stage("writing", assembly.shard_tasks, assembly.write_shard),
    Stage("finishing", assembly.manifest_tasks, assembly.write_manifest),
)


def stage_tasks(stage: int, work: StoragePath) -> list[Any]:
    """The tasks of a stage that are not complete, of the preparation in a working folder."""
    return STAGES[stage].tasks(open_preparation(work))


def run_task(stage: int, work: StoragePath, task: Any) -> None:
    """Runs one task. Its arguments are small values that can be pickled: a worker opens the preparation itself."""
    STAGES[stage].run(open_preparation(work), task)


PREPARATION = StagedWork(
    tuple(stage.name for stage in STAGES),
    stage_tasks,
    run_task,
    "fewer --workers or smaller --part-bytes need less memory",
)

"""The stages of a preparation. Each is a list of small tasks that know nothing of each other; a stage begins when the
one before is done. A task reads files, writes files, and leaves the same ones whenever and wherever it runs; what is
there already is not done again. So nothing is ever shuffled between workers, none holds more than a part or a shard,
and the store does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steerling_jax.train.corpus import labelling, survey
from steerling_jax.train.prepare import assembly
from steerling_jax.train.prepare.job import Preparation


@dataclass(frozen=True)
class Stage:
    """tasks: what is still to do. run: does one task of it."""

    name: str
    tasks: Callable[[Preparation], list[Any]]
    run: Callable[[Preparation, Any], None]


STAGES = (
    Stage("reading", survey.unread, survey.survey_part),
    Stage("counting", survey.uncounted, survey.count_all),
    Stage("comparing", survey.uncompared, survey.compare),
    Stage("splitting", labelling.unclustered, labelling.cluster),
    Stage("making the vocabulary", labelling.without_vocabulary, labelling.make_vocabulary),
    Stage("learning labels", labelling.unready, labelling.make_annotator),
    Stage("tokens and labels", labelling.unlabelled, labelling.label_part),
    Stage("laying out", assembly.without_layout, assembly.make_layout),
    Stage("writing", assembly.unwritten, assembly.write_shard),
    Stage("finishing", assembly.unfinished, assembly.finish),
)

"""Texts of many files read in stages, by several processes or machines, for collections larger than one machine.

A task reads one file, runs the model on its texts and writes their features; another adds up what each collection's
files have. No process holds more than the texts of one file.

WORK/reading.json      the plan: model, autoencoders, files
WORK/features/…        the features of each file; a .json beside them, written last, has the number of its texts
WORK/counts/….npz      for each collection, the number of texts with each feature

Legend: S latents of an autoencoder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from steerling_jax.attribution.sae.file_features import (
    FileFeatures,
    from_bytes,
    joined,
    read_file_features,
    to_bytes,
)
from steerling_jax.attribution.sae.options import load_reader
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.evaluation.sparse_tables import sample_counts
from steerling_jax.explain.feature_classifier import autoencoder_digest
from steerling_jax.io.stages.staged_work import StagedWork
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.text_tables import read_text_table
from steerling_jax.models.steerling.fingerprint import fingerprint

PLAN_FILE = "reading.json"


@dataclass(frozen=True)
class ReadingPlan:
    """What is read with what; `collections` has the files of each, with their sizes, by which a change is noticed.

    model, autoencoder, k: as the options of the command, which every process can reach. layers: blocks whose
    autoencoders are used; None for all. column: of the texts. ngram: words of an n-gram. identity: of the model and the
    autoencoders.
    """

    model: str | None
    autoencoder: str | None
    k: int | None
    layers: list[int] | None
    column: str
    ngram: int
    collections: list[list[list[Any]]]
    identity: list[str]


class Reading:
    """A reading opened from its working folder. Its files never change, so the properties are cached."""

    def __init__(self, work: StoragePath) -> None:
        (content,) = work.read_many([PLAN_FILE])
        self.work, self.plan = work, ReadingPlan(**json.loads(content))
        self.files = [str(address) for one in self.plan.collections for address, _ in one]

    @cached_property
    def reader(self) -> tuple[Bundle, list[Autoencoder]]:
        """The model and the autoencoders, loaded when a task needs them."""
        plan = self.plan
        return load_reader(plan.model, plan.autoencoder, plan.k, plan.layers)

    def of_collection(self, number: int) -> list[int]:
        """The numbers of a collection's files."""
        first = sum(len(one) for one in self.plan.collections[:number])
        return list(range(first, first + len(self.plan.collections[number])))

    def texts_of_files(self, files: Sequence[int]) -> list[int]:
        """The number of texts of each file."""
        return [json.loads(one)["texts"] for one in self.work.read_many([f"features/{i:06}.json" for i in files])]

    def features_of(self, file: int) -> FileFeatures:
        (content,) = self.work.read_many([f"features/{file:06}.npz"])
        return from_bytes(content)

    def counts(self, collection: int, layer: int) -> np.ndarray:
        """The number of texts of a collection with each feature (S,) at their last token."""
        (content,) = self.work.read_many([f"counts/{collection:06}.npz"])
        with np.load(io.BytesIO(content)) as arrays:
            return arrays[f"last_{layer}"]

    def select(self, collection: int, chosen: np.ndarray) -> FileFeatures:
        """The features of the texts of a collection with the numbers `chosen`, in order; files without one of them are
        not read."""
        files, parts, first = self.of_collection(collection), [], 0
        for file, count in zip(files, self.texts_of_files(files), strict=True):
            own = chosen[(chosen >= first) & (chosen < first + count)] - first
            if len(own):
                parts.append(self.features_of(file).select(own))
            first += count
        return joined(parts)


@cache
def open_reading(work: StoragePath) -> Reading:
    """Opens the reading in a working folder, once per process."""
    return Reading(work)


def start_reading(
    work: StoragePath,
    options: Mapping[str, Any],
    collections: Sequence[Sequence[tuple[str, int]]],
    reader: tuple[Bundle, list[Autoencoder]],
) -> Reading:
    """Writes the plan to the working folder, or checks that the one there is the same, to resume it.

    options: the other fields of the plan. collections: the files of each with their sizes. reader: the model and the
    autoencoders, as this process loaded them. Raises `UserError` for a folder with another plan.
    """
    bundle, autoencoders = reader
    identity = [fingerprint(bundle.params, bundle.config), *map(autoencoder_digest, autoencoders)]
    files = [[[address, size] for address, size in one] for one in collections]
    plan = asdict(ReadingPlan(**options, collections=files, identity=identity))
    content = work.read(PLAN_FILE)
    if content is None:
        work.write_json(PLAN_FILE, plan)
    elif (saved := json.loads(content)) != json.loads(json.dumps(plan)):
        changed = next(key for key in plan if saved.get(key) != plan[key])
        raise UserError(
            f"{work} has the features of another reading (another {changed}): remove it, choose another --work, or "
            "undo the change to resume it."
        )
    open_reading.cache_clear()
    reading = open_reading(work)
    reading.__dict__["reader"] = reader  # loaded already
    return reading


def stage_tasks(stage: int, work: StoragePath) -> list[int]:
    """The files that are not read yet, or the collections that are not counted yet."""
    reading = open_reading(work)
    folder, suffix = (("features", ".json"), ("counts", ".npz"))[stage]
    count = (len(reading.files), len(reading.plan.collections))[stage]
    existing = work.names(folder)
    return [number for number in range(count) if f"{folder}/{number:06}{suffix}" not in existing]


def run_task(stage: int, work: StoragePath, task: int) -> None:
    """Reads one file, or adds up the counts of one collection."""
    reading = open_reading(work)
    (_read if stage == 0 else _count)(reading, task)


def _read(reading: Reading, file: int) -> None:
    bundle, autoencoders = reading.reader
    texts = read_text_table(reading.files[file], reading.plan.column).texts
    features = read_file_features(bundle, autoencoders, texts, reading.plan.ngram)
    reading.work.write(f"features/{file:06}.npz", to_bytes(features))
    # Last, so that its presence means that the file is complete.
    reading.work.write_json(f"features/{file:06}.json", {"texts": len(texts)})


def _count(reading: Reading, collection: int) -> None:
    totals: dict[str, np.ndarray] = {}
    for file in reading.of_collection(collection):
        for number, layer in enumerate(reading.features_of(file).layers):
            name = f"last_{number}"
            totals[name] = totals.get(name, 0) + sample_counts(layer.last)
    content = io.BytesIO()
    np.savez(content, **totals)  # type: ignore[arg-type]
    reading.work.write(f"counts/{collection:06}.npz", content.getvalue())


READING = StagedWork(
    ("reading texts", "counting features"), stage_tasks, run_task, "fewer --workers or smaller files need less memory"
)

"""Building an index: the missing units one after another, then the thresholds.

A build that was stopped continues with the next missing unit, since a unit's folder appears only when it is complete.
Several processes divide the units by their number, without any communication but the index folder.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.attribution.index.build_unit import build_unit
from steerling_jax.attribution.index.reader import Index
from steerling_jax.attribution.index.settings import IndexSettings, index_description
from steerling_jax.attribution.index.thresholds import compute_thresholds
from steerling_jax.attribution.index.training_coverage import training_coverage
from steerling_jax.attribution.index.unit_plan import indexed_documents, is_done, make_plan, unit_folder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import IndexFolder, corpus_digest, start_index, write_unit
from steerling_jax.io.json_files import write_json
from steerling_jax.progress import Progress, no_progress


def build_index(
    corpus: CorpusStore,
    bundle: Bundle,
    folder: str | Path,
    settings: IndexSettings | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Builds this process's share of the units, and finishes the index if all units exist.

    Returns a report: units built now and in all, chunks, bytes by array, coverage, thresholds, and whether the index is
    finished. Raises `UserError` if the folder holds an index of another tokenizer, checkpoint or settings, and if the
    model gives NaN.
    """
    settings = settings or IndexSettings()
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}: the index must be from 0 to below the count.")
    corpus.check_tokenizer(bundle.tokenizer.sha256)
    coverage = training_coverage(bundle, corpus, settings.splits)
    index = start_index(Path(folder), index_description(corpus, bundle, settings))
    build = _Build(index, corpus, bundle, settings, progress)
    built = build.build_units(process_index, process_count)
    finished = all(is_done(index, name) for name in build.plan)
    if finished:
        build.finish()
    return _report(index, build.plan, built, finished, coverage)


@dataclass
class _Build:
    index: IndexFolder
    corpus: CorpusStore
    bundle: Bundle
    settings: IndexSettings
    progress: Progress

    def __post_init__(self) -> None:
        self.plan = make_plan(self.index, self.corpus, self.settings)
        self.numbers = indexed_documents(self.corpus, self.settings.splits)

    def build_units(self, process_index: int, process_count: int) -> int:
        """Builds the missing ones of every `process_count`-th unit; returns how many were built."""
        built = 0
        names = sorted(self.plan)[process_index::process_count]
        for done, name in enumerate(names):
            self.progress("units", done, len(names))
            if not is_done(self.index, name):
                self._build_unit(name)
                built += 1
        self.progress("units", len(names), len(names))
        return built

    def _build_unit(self, name: str) -> None:
        keys = self.plan[name]
        numbers = [self.numbers[key] for key in keys]
        arrays = build_unit(self.corpus, numbers, self.bundle, self.settings, self.progress)
        try:
            write_unit(unit_folder(self.index, name), keys, arrays)
        except UserError:
            # Another process with the same share may have built the unit meanwhile; both are equal.
            if not is_done(self.index, name):
                raise

    def finish(self) -> None:
        """Writes `current.json` with units and thresholds, then removes units of earlier states of the corpus.

        Does nothing if `current.json` is of this state. Units are removed last: an interruption leaves either the
        earlier finished index or the new one.
        """
        digest = corpus_digest(list(self.numbers))
        path = self.index.folder / "current.json"
        if path.is_file() and self.index.current()["corpus"] == digest:
            return
        state = {"corpus": digest, "units": sorted(self.plan), "thresholds": {}}
        index = Index(self.index, state, self.corpus, self.bundle)
        write_json(path, state | {"thresholds": compute_thresholds(index, self.progress)})
        for folder in (self.index.folder / "units").iterdir():
            if folder.name not in self.plan:
                shutil.rmtree(folder, ignore_errors=True)


def _report(
    index: IndexFolder, plan: dict[str, list[str]], built: int, finished: bool, coverage: dict[str, Any] | None
) -> dict[str, Any]:
    """Counts and sizes of the units that exist, as `steerling index --json` prints them."""
    units = [index.unit(name).metadata for name in plan if is_done(index, name)]
    chunks = sum(unit["chunks"] for unit in units)
    sizes: dict[str, int] = {}
    for unit in units:
        for array, count in unit["bytes"].items():
            sizes[array] = sizes.get(array, 0) + count
    return {
        "index": str(index.folder),
        "finished": finished,
        "units": len(plan),
        "units_done": len(units),
        "units_made_now": built,
        "documents": sum(len(unit["documents"]) for unit in units),
        "chunks": chunks,
        "bytes_a_chunk": {array: size / max(chunks, 1) for array, size in sizes.items()},
        "coverage": coverage,
        "thresholds": index.current()["thresholds"] if finished else {},
    }

"""Building an index: units that are not there yet, one after another, then thresholds. Stopped at any moment, it goes
on where it was; several processes share the units out by their number."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from steerling_jax.attribution.index.coverage import coverage
from steerling_jax.attribution.index.plan import (
    IndexSettings,
    description,
    indexed_documents,
    is_done,
    make_plan,
    unit_folder,
)
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import write_json
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import IndexFolder, corpus_digest, start_index, write_unit
from steerling_jax.progress import Progress, no_progress


def build_index(
    corpus: CorpusStore,
    bundle: Bundle,
    folder: str | Path,
    settings: IndexSettings | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
    tell: Progress = no_progress,
) -> dict[str, Any]:
    """Builds process `process_index`'s share of the units, and finishes the index once all are there.

    Returns a report: units made now and in all, chunks, bytes by array, coverage, whether the index is finished.
    Raises `UserError` for another tokenizer, checkpoint or settings, and for a model that gives NaN.
    """
    settings = settings or IndexSettings()
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}: the index must be from 0 to below the count.")
    corpus.check_tokenizer(bundle.tokenizer.sha256)
    covered = coverage(bundle, corpus, settings.splits)
    index = start_index(Path(folder), description(corpus, bundle, settings))
    plan = make_plan(index, corpus, settings)
    numbers = indexed_documents(corpus, settings.splits)
    made = 0
    mine = sorted(plan)[process_index::process_count]
    for done, name in enumerate(mine):
        tell("units", done, len(mine))
        if not is_done(index, name):
            _make(index, name, plan[name], numbers, corpus, bundle, settings, tell)
            made += 1
    tell("units", len(mine), len(mine))
    finished = all(is_done(index, name) for name in plan)
    if finished:
        _finish(index, corpus, bundle, plan, numbers, settings, tell)
    return report(index, plan, made, finished, covered)


def _make(index, name, documents, numbers, corpus, bundle, settings, tell: Progress) -> None:
    from steerling_jax.attribution.index.unit import make_unit

    arrays = make_unit(corpus, [numbers[key] for key in documents], bundle, settings, tell)
    try:
        write_unit(unit_folder(index, name), documents, arrays)
    except UserError:
        if not is_done(index, name):  # another process may have made the same unit
            raise


def _finish(
    index: IndexFolder,
    corpus: CorpusStore,
    bundle: Bundle,
    plan: dict[str, list[str]],
    numbers: dict[str, int],
    settings: IndexSettings,
    tell: Progress,
) -> None:
    """Thresholds and the list of units, unless this state of the corpus has them; then removes what is not of it."""
    from steerling_jax.attribution.index.null import thresholds
    from steerling_jax.attribution.index.opened import Index

    digest = corpus_digest(list(numbers))
    path = index.folder / "current.json"
    if path.is_file() and index.current()["corpus"] == digest:
        return
    state = {"corpus": digest, "units": sorted(plan), "thresholds": {}}
    opened = Index(index, state, corpus, bundle)
    write_json(path, state | {"thresholds": thresholds(opened, tell)})
    for folder in (index.folder / "units").iterdir():
        if folder.name not in plan:
            shutil.rmtree(folder, ignore_errors=True)


def report(
    index: IndexFolder, plan: dict[str, list[str]], made: int, finished: bool, covered: dict[str, Any] | None
) -> dict[str, Any]:
    """What there is, for people and for --json."""
    units = [index.unit(name).about for name in plan if is_done(index, name)]
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
        "units_made_now": made,
        "documents": sum(len(unit["documents"]) for unit in units),
        "chunks": chunks,
        "bytes_a_chunk": {array: size / max(chunks, 1) for array, size in sizes.items()},
        "coverage": covered,
        "thresholds": index.current()["thresholds"] if finished else {},
    }

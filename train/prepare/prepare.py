"""Makes a corpus store from documents: `prepare` writes the plan, a runner runs the stages, the store appears whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from steerling_jax.concepts.concept import comparable
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.disk_errors import report_disk_errors
from steerling_jax.io.stages.local import WorkerKilled
from steerling_jax.io.stages.running import run_stages
from steerling_jax.io.stages.staged_work import RunnerConfig
from steerling_jax.io.storage import StoragePath
from steerling_jax.progress import Progress, no_progress
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_table import TableSettings, check_table, table_concepts
from steerling_jax.train.corpus.ontology import ConceptDefinition, read_concepts
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.model_tokenizer import model_tokenizer
from steerling_jax.train.prepare.part_plan import plan_parts
from steerling_jax.train.prepare.preparation import PLAN_FILE, PreparationPlan, start_preparation
from steerling_jax.train.prepare.stages import PREPARATION
from steerling_jax.train.prepare.vocabulary_file import FILES, vocabulary_file

# Files that `prepare` writes before the plan: a kill in between leaves them in a working folder without a plan.
_BEFORE_PLAN = re.compile("|".join([r"documents-\w+\.jsonl|documents\.new", *map(re.escape, FILES)]))


def prepare(
    out: str | Path,
    inputs: CorpusInputs,
    config: PrepareConfig | None = None,
    runner: RunnerConfig | None = None,
    progress: Progress = no_progress,
) -> CorpusStore:
    """Makes the corpus store at `out` (a local folder or a bucket's address) and opens it.

    Intermediate results are in the folder `OUT.work` until the store is complete: the same call resumes an interrupted
    preparation, also after a kill. The same inputs and configuration give the same store, byte for byte, with any
    runner and any number of workers.

    config, runner: default, the default values of their fields. progress: called with stage, completed tasks and total;
    never on a Beam runner.

    Raises `UserError` if `out` exists, for files that cannot be read, unknown sources and concept names, a vocabulary
    size that the text cannot fill, and an `OUT.work` that contains another preparation or other files.
    """
    config, runner = config or PrepareConfig(), runner or RunnerConfig()
    target, work = StoragePath(out), StoragePath(f"{str(out).rstrip('/')}.work")
    # A local store is renamed into place when complete; one in a bucket is complete when it has its manifest.
    if target.has("manifest.json") if target.is_remote else os.path.lexists(out):
        raise UserError(f"{out} already exists: choose another --out, or remove it.")
    if target.is_remote and inputs.documents is not None:
        raise UserError(f"{out} is in a bucket, where documents must come from files: name some with --input.")
    concepts, table_ids = _all_concepts(inputs)
    if config.embeddings and any(concept.is_learned for concept in concepts):
        model_tokenizer(config.embeddings)  # fails for a model that cannot embed text, before any document is read
    resumes = work.has(PLAN_FILE)
    if not resumes:
        _check_unused(target, work)
    sources = inputs.sources
    if inputs.documents is not None:
        sources = [_write_documents(inputs.documents, Path(work.address))]
    started = False
    try:
        vocabulary, content = (None, None) if inputs.tokenizer is None else vocabulary_file(inputs.tokenizer)
        plan = PreparationPlan(
            config=config,
            store=target if target.is_remote else work / "store",
            sources=sources,
            concepts=concepts,
            tables=inputs.tables,
            table_ids=table_ids,
            vocabulary=vocabulary,
            parts=plan_parts(sources, config.part_bytes),
        )
        start_preparation(work, plan, content)
        started = True
        run_stages(PREPARATION, work, runner, progress)
    except UserError as error:
        # Bad input is usually found while reading: then nothing is worth keeping, and the corrected command must not
        # meet a working folder with another plan. After the survey, results are expensive and are kept, except where
        # only another vocabulary size helps, which is another plan. A folder with another plan (it resumes, but did
        # not start) belongs to another preparation.
        own = started or not resumes
        is_kept = (work.has("survey.json") and error.field != "vocab_size") or isinstance(error, WorkerKilled)
        if own and not is_kept:
            work.remove()
        _remove_unused_documents(work)
        raise
    if not target.is_remote:
        Path(work.address, "store").rename(out)
    work.remove()
    return CorpusStore(out)


def _check_unused(target: StoragePath, work: StoragePath) -> None:
    """Raises `UserError` if a new preparation would mix with another, or would remove files that are not its own."""
    if others := sorted(name for name in work.names() if not _BEFORE_PLAN.fullmatch(name)):
        raise UserError(
            f"{work} contains {others[0]} but no preparation to resume: remove that folder, or choose another --out."
        )
    if target.is_remote and target.names():
        raise UserError(
            f"{target} contains part of another preparation, whose {work} no longer exists: remove {target} too, or "
            "choose another --out."
        )


def _write_documents(documents: Iterable[Document], work: Path) -> TextSource:
    """Writes documents given in memory to a JSON lines file in the working folder and returns it as a source.

    The file is named by the hash of its content: the same documents give the same plan and resume it, and different
    ones leave the file of an interrupted preparation as it is.
    """
    new, digest = work / "documents.new", hashlib.sha256()
    with report_disk_errors(f"Cannot write {work}"):
        work.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as lines:
            for document in documents:
                line = (json.dumps(asdict(document)) + "\n").encode()
                digest.update(line)
                lines.write(line)
        named = work / f"documents-{digest.hexdigest()[:16]}.jsonl"
        if named.is_file():
            new.unlink()
        else:
            new.replace(named)
    return TextSource((str(named.absolute()),))


def _remove_unused_documents(work: StoragePath) -> None:
    """Removes files of documents that the plan does not use: those of a preparation that was rejected."""
    plan = work.read(PLAN_FILE) or b""
    for path in Path(work.address).glob("documents-*.jsonl") if plan else ():
        if path.name.encode() not in plan:
            path.unlink()


def _all_concepts(inputs: CorpusInputs) -> tuple[list[ConceptDefinition], list[dict[int, int]]]:
    """The concepts of the corpus, with those of the tables of labels; and, for each table, its ids' ids in the corpus.

    Raises `UserError` for a table with missing files or columns.
    """
    concepts = list(read_concepts() if inputs.concepts is None else inputs.concepts)
    for table in inputs.tables:
        check_table(table)
    return concepts, [_add_table_concepts(concepts, table) for table in inputs.tables]


def _add_table_concepts(concepts: list[ConceptDefinition], table: TableSettings) -> dict[int, int]:
    """Appends the table's concepts with new names to `concepts`; returns the corpus's id for each of the table's ids.

    Concepts of equal names (by `comparable`) are one concept.
    """
    by_name = {comparable(concept.name): concept.id for concept in concepts}
    ids = {}
    for concept in table_concepts(table):
        key = comparable(concept["name"])
        if key not in by_name:
            by_name[key] = len(concepts)
            concepts.append(ConceptDefinition(len(concepts), concept["name"], concept["group"], concept["description"]))
        ids[concept["id"]] = by_name[key]
    return ids

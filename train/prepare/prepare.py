"""From documents to a corpus store: `prepare` sets up the job, a runner does its stages, the folder appears whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerling_jax.concepts.catalogue import comparable
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.disk import told
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import Tokenizer
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.inputs import plan_parts
from steerling_jax.train.corpus.label_table import TableSettings, check_table, table_concepts
from steerling_jax.train.corpus.ontology import ConceptDefinition, read_concepts
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.data.model_tokenizer import model_tokenizer
from steerling_jax.train.prepare.job import JOB, TIKTOKEN, TOKENIZER, PrepareSettings, start_job
from steerling_jax.train.prepare.runners import WorkerKilled, run_here, run_on_beam

_BEFORE_JOB = re.compile(rf"documents-\w+\.jsonl|documents\.new|{re.escape(TOKENIZER)}|{re.escape(TIKTOKEN)}")


def prepare(
    out: str | Path,
    *,
    documents: Iterable[Document] | None = None,
    inputs: Sequence[TextSource] = (),
    vocab_size: int = 4096,
    chunk_tokens: int = 64,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    sources: Mapping[str, float] | None = None,
    concepts: Sequence[ConceptDefinition] | None = None,
    tables: Sequence[TableSettings] = (),
    embeddings: str = "",
    heldout_share: float = 0.04,
    part_bytes: int = 0,
    workers: int = 1,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
    progress: Progress = no_progress,
) -> CorpusStore:
    """Makes the store at `out`, all or nothing, of `documents` or of the files of `inputs`, and opens it.

    What is done is kept in `OUT.work` until all is: the same call goes on from there, also after a kill. The same
    documents, settings and seed give the same store, byte for byte, with any number of `workers` (processes here), and
    on any Beam `runner`. A SentencePiece vocabulary of `vocab_size` is made from the training split, unless a
    `tokenizer` is given. `sources` maps a source to the share of its documents to keep, all of them where it is not
    named. concepts: default, the bundled ones. tables: labels made elsewhere. embeddings: the model that concepts with
    examples are learned over; empty: hashed words. part_bytes: text that a worker reads at a time; 0: by the size of
    it all.

    Raises `UserError` for files that cannot be read, unknown sources and concept names, a vocabulary that the text
    cannot fill, and an `OUT.work` of another preparation or of something else.
    """
    target, work = StoragePath(out), StoragePath(f"{str(out).rstrip('/')}.work")
    if target.has("manifest.json") if target.is_remote else Path(out).exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it.")
    if target.is_remote and documents is not None:
        raise UserError(f"{out} is in a bucket, where documents must come from files: name some with --input.")
    settings = PrepareSettings(
        vocab_size, chunk_tokens, seed, heldout_share, tuple(sorted((sources or {}).items())), part_bytes, embeddings
    )
    concepts = list(read_concepts() if concepts is None else concepts)
    for table in tables:
        check_table(table)
    table_ids = [_join(concepts, table) for table in tables]
    if embeddings and any(concept.is_learned for concept in concepts):
        model_tokenizer(embeddings)  # texts can be given to it, which is told before they are all read
    goes_on = work.has(JOB)
    if not goes_on:
        _check_unused(target, work)
    found = list(inputs) if documents is None else [_spool(documents, Path(work.address))]
    try:
        start_job(
            work,
            target if target.is_remote else work / "store",
            settings=settings,
            sources=found,
            parts=plan_parts(found, part_bytes),
            concepts=concepts,
            tables=tables,
            table_ids=table_ids,
            vocabulary=None if tokenizer is None else _vocabulary(tokenizer),
        )
        if runner is None:
            run_here(work, workers, progress)
        else:
            run_on_beam(work, runner, runner_options)
    except UserError as error:
        if not (goes_on or work.has("survey.json") or isinstance(error, WorkerKilled)):  # nothing that took long
            work.remove()
        _forget_spools(work)
        raise
    if not target.is_remote:
        Path(work.address, "store").rename(out)
    work.remove()
    return CorpusStore(out)


def _check_unused(target: StoragePath, work: StoragePath) -> None:
    """Raises `UserError` where a new preparation would be mixed with another, or would remove what is not its own."""
    if others := sorted(name for name in work.names() if not _BEFORE_JOB.fullmatch(name)):
        raise UserError(
            f"{work} holds {others[0]} and no preparation to go on with: remove that folder, or choose another --out."
        )
    if target.is_remote and target.names():
        raise UserError(
            f"{target} holds part of another preparation, whose {work} is gone: remove {target} too, or choose another "
            "--out."
        )


def _spool(documents: Iterable[Document], work: Path) -> TextSource:
    """Documents that are not in files, as a file of JSON lines, named by its content: the same ones again leave it as
    it is, and others do not replace it."""
    new, digest = work / "documents.new", hashlib.sha256()
    with told(f"Cannot write {work}"):
        work.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as lines:
            for document in documents:
                line = (json.dumps(asdict(document)) + "\n").encode()
                digest.update(line)
                lines.write(line)
        kept = work / f"documents-{digest.hexdigest()[:16]}.jsonl"
        if kept.is_file():
            new.unlink()
        else:
            new.replace(kept)
    return TextSource((str(kept.absolute()),))


def _forget_spools(work: StoragePath) -> None:
    """Removes documents that were written down for a preparation which was then refused: the job does not name them."""
    job = work.read(JOB) or b""
    for path in Path(work.address).glob("documents-*.jsonl") if job else ():
        if path.name.encode() not in job:
            path.unlink()


def _join(concepts: list[ConceptDefinition], table: TableSettings) -> dict[int, int]:
    """Adds to `concepts` those of the table whose names are new. Gives the corpus's id for each of the table's."""
    by_name = {comparable(concept.name): concept.id for concept in concepts}
    ids = {}
    for one in table_concepts(table):
        if comparable(one["name"]) not in by_name:
            by_name[comparable(one["name"])] = len(concepts)
            concepts.append(ConceptDefinition(len(concepts), one["name"], one["group"], one["description"]))
        ids[one["id"]] = by_name[comparable(one["name"])]
    return ids


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes]:
    """What workers need to have the tokenizer too."""
    about = {
        "special": asdict(tokenizer.special), "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256
    }  # fmt: skip
    if isinstance(tokenizer, SentencePieceTokenizer):
        return about | {"file": TOKENIZER}, tokenizer.proto
    if isinstance(tokenizer, TiktokenTokenizer):
        return about | {"file": TIKTOKEN}, tokenizer.proto
    raise UserError("A corpus needs a tokenizer with a vocabulary: give a model that has one.")

"""A preparation: its settings, kept in its working folder, so that any worker and any later run has them.

WORK/job.json             settings, sources, concepts, parts
WORK/documents-….jsonl    documents that came from no file, named by their hash
WORK/survey/, survey.json    each part's counts and the hashes of its documents; the counts of all
WORK/duplicates/          documents whose text stands somewhere before, by part
WORK/clusters.json        the near-duplicates
WORK/tokenizer.model      (or vocabulary.tiktoken)
WORK/annotators/          tables of labels and learned concepts, made ready
WORK/parts/               each part's tokens, chunks and labels
WORK/layout.json          how large each piece is
WORK/store/               the store, until it is whole (a local one)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.tokenizer import SpecialIds, Tokenizer
from steerling_jax.train.corpus.annotators import Annotator, OwnLabels
from steerling_jax.train.corpus.examples import Examples, hashed_words, model_embeddings
from steerling_jax.train.corpus.label_table import LabelTable, TableSettings
from steerling_jax.train.corpus.ontology import ConceptDefinition, MatchRules
from steerling_jax.train.corpus.parts import Part
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.permutation import Permutation

JOB = "job.json"
TOKENIZER = "tokenizer.model"
TIKTOKEN = "vocabulary.tiktoken"


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the store, beside documents, concepts and vocabulary. sources: share of a source's documents to
    keep, all where it is not named. part_bytes: about so much is read at a time; 0: by the size of it all.
    embeddings: the model that concepts are learned over; empty: hashed words."""

    vocab_size: int = 4096
    chunk_tokens: int = 64
    seed: int = 0
    heldout_share: float = 0.04
    shares: tuple[tuple[str, float], ...] = ()
    part_bytes: int = 0
    embeddings: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shares": dict(self.shares)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> PrepareSettings:
        values: dict[str, Any] = saved | {"shares": tuple(saved["shares"].items())}
        return cls(**values)


class Preparation:
    """A preparation opened in its working folder. Nothing in it changes while it runs, so what is read is kept."""

    def __init__(self, work: StoragePath):
        self.work = work
        (content,) = work.read_many([JOB])
        saved = json.loads(content)
        self.settings = PrepareSettings.from_json(saved["settings"])
        self.store = StoragePath(saved["store"])
        self.sources = [TextSource.from_json(source) for source in saved["sources"]]
        self.concepts = [ConceptDefinition.from_json(concept) for concept in saved["concepts"]]
        self.tables = [TableSettings.from_json(table) for table in saved["tables"]]
        self.table_ids: list[dict[int, int]] = [
            {int(key): value for key, value in ids.items()} for ids in saved["table_ids"]
        ]
        self.vocabulary: dict[str, Any] | None = saved["vocabulary"]
        self.parts = [Part.from_json(part) for part in saved["parts"]]

    @cached_property
    def part_order(self) -> np.ndarray:
        """The parts in the order of the training split, (parts,) int64."""
        return Permutation(len(self.parts), self.settings.seed % (1 << 64)).order()

    def document_order(self, part: int, count: int) -> np.ndarray:
        """The documents of a part in the order of the training split, (count,) int64."""
        seed = np.random.SeedSequence([self.settings.seed % (1 << 64), part]).generate_state(1, np.uint64)
        return Permutation(count, int(seed[0])).order()

    @cached_property
    def shares(self) -> dict[str, float]:
        return dict(self.settings.shares)

    @cached_property
    def clusters(self) -> dict[str, str]:
        """Hash of a document to the hash or name that stands for its cluster."""
        return json.loads(self.work.read("clusters.json") or b"{}")

    @cached_property
    def first_lines(self) -> list[int]:
        """Number of the first line of each part, in its file."""
        found, last_file, line = [], "", 1
        for part, lines in zip(self.parts, self.survey["lines"]):
            line = line if part.files[0].address == last_file else 1
            found.append(line)
            last_file, line = part.files[0].address, line + lines
        return found

    @cached_property
    def survey(self) -> dict[str, Any]:
        """Number of documents and characters, and of each part's lines."""
        (content,) = self.work.read_many(["survey.json"])
        return json.loads(content)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        about = self.vocabulary
        if about is None:
            (proto,) = self.work.read_many([TOKENIZER])
            return SentencePieceTokenizer(proto)
        (content,) = self.work.read_many([about["file"]])
        special = SpecialIds(**about["special"])
        if about["file"] == TOKENIZER:
            return SentencePieceTokenizer(content, special, about["vocab_size"])
        from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer  # it needs tiktoken, which is optional

        return TiktokenTokenizer(content, special, about["vocab_size"])

    @cached_property
    def annotators(self) -> list[Annotator]:
        """Who labels, in order; the origin of a label is a place in this list."""
        found: list[Annotator] = [OwnLabels([c.name for c in self.concepts])]
        found += [LabelTable(table, self.table_place(number)) for number, table in enumerate(self.tables)]
        found.append(MatchRules(self.concepts))
        if self.learned:
            (content,) = self.work.read_many(["annotators/examples.npz"])
            found.append(Examples.from_bytes(content, self.embed))
        return found

    @property
    def learned(self) -> list[ConceptDefinition]:
        """The concepts that are learned from examples."""
        return [c for c in self.concepts if c.is_learned]

    @cached_property
    def embed(self):
        return model_embeddings(self.settings.embeddings) if self.settings.embeddings else hashed_words

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the working folder's files that are not there yet."""
        return [name for name in names if not self.work.has(name)]

    def parts_without(self, folder: str) -> list[int]:
        """The parts that have no file of their number in a folder of the working folder."""
        done = self.work.names(folder)
        return [number for number in range(len(self.parts)) if f"{folder}/{number:06}.json" not in done]

    def table_place(self, number: int) -> StoragePath:
        return self.work / f"annotators/{number:02}"


@cache
def open_job(work: StoragePath) -> Preparation:
    """The job in a working folder, opened once a process."""
    return Preparation(work)


def start_job(
    work: StoragePath,
    store: StoragePath,
    *,
    settings: PrepareSettings,
    sources: Sequence[TextSource],
    parts: Sequence[Part],
    concepts: Sequence[ConceptDefinition],
    tables: Sequence[TableSettings],
    table_ids: Sequence[dict[int, int]],
    vocabulary: tuple[dict[str, Any], bytes] | None,
) -> Preparation:
    """Writes the job, or finds it there already and goes on with it. Raises `UserError` where it is another."""
    job = {
        "settings": settings.to_json(),
        "store": store.address,
        "sources": [source.to_json() for source in sources],
        "concepts": [concept.to_json() for concept in concepts],
        "tables": [table.to_json() for table in tables],
        "table_ids": [{str(key): value for key, value in ids.items()} for ids in table_ids],
        "vocabulary": vocabulary and vocabulary[0],
        "parts": [part.to_json() for part in parts],
    }
    job = json.loads(json.dumps(job))
    before = work.read(JOB)
    if before is None:
        if vocabulary is not None:
            work.write(vocabulary[0]["file"], vocabulary[1])
        work.write_json(JOB, job)
    elif (saved := json.loads(before)) != job:
        changed = next(key for key in job if saved.get(key) != job[key])
        begun = f"it and {store}" if store.is_remote else "it"
        raise UserError(
            f"{work} holds a preparation that was stopped, with other {_CALLED.get(changed, changed)}: remove {begun} "
            "to begin anew, or undo the change to go on with it."
        )
    open_job.cache_clear()
    return open_job(work)


_CALLED = {
    "parts": "input files",
    "vocabulary": "tokens",
    "table_ids": "tables of labels",
    "tables": "tables of labels",
}

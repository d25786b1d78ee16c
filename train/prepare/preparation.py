"""A preparation: its plan and intermediate results, stored in a working folder that every worker reads.

WORK/job.json                the plan: settings, sources, concepts, parts
WORK/documents-….jsonl       documents given in memory, written to a file named by its hash
WORK/survey/, survey.json    counts of each part and the hashes of its documents; the totals
WORK/duplicates/             documents whose text occurred before, by part
WORK/clusters.json           clusters of near-duplicates
WORK/tokenizer.model         the vocabulary (or vocabulary.tiktoken, or tokenizer.json)
WORK/annotators/             joined tables of labels, and classifiers of learned concepts
WORK/parts/                  tokens, chunks and labels of each part
WORK/layout.json             sizes of all pieces
WORK/store/                  a local store until it is complete
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.tokenizer import Tokenizer
from steerling_jax.train.corpus.annotators import Annotator, DocumentLabels
from steerling_jax.train.corpus.label_join import TableLabels
from steerling_jax.train.corpus.label_table import TableSettings
from steerling_jax.train.corpus.learned_labels import Embed, LearnedLabels, hashed_words, model_embeddings
from steerling_jax.train.corpus.ontology import ConceptDefinition
from steerling_jax.train.corpus.parts import Part
from steerling_jax.train.corpus.rules import RuleLabels
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.config import PrepareConfig
from steerling_jax.train.prepare.permutation import Permutation
from steerling_jax.train.prepare.vocabulary_file import SENTENCEPIECE_FILE, VocabularyFile

PLAN_FILE = "job.json"
LEARNED_FILE = "annotators/examples.npz"


@dataclass(frozen=True)
class PreparationPlan:
    """Everything that decides the store, fixed before the first task.

    store: the folder that is written to. table_ids: for each table of labels, the corpus's concept id for each of the
    table's ids. vocabulary: the given vocabulary; None if one is trained.
    """

    config: PrepareConfig
    store: StoragePath
    sources: Sequence[TextSource]
    concepts: Sequence[ConceptDefinition]
    tables: Sequence[TableSettings]
    table_ids: Sequence[dict[int, int]]
    vocabulary: VocabularyFile | None
    parts: Sequence[Part]

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.config.to_json(),
            "store": self.store.address,
            "sources": [source.to_json() for source in self.sources],
            "concepts": [concept.to_json() for concept in self.concepts],
            "tables": [table.to_json() for table in self.tables],
            "table_ids": [{str(key): value for key, value in ids.items()} for ids in self.table_ids],
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_json(),
            "parts": [part.to_json() for part in self.parts],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> PreparationPlan:
        return cls(
            config=PrepareConfig.from_json(saved["settings"]),
            store=StoragePath(saved["store"]),
            sources=[TextSource.from_json(source) for source in saved["sources"]],
            concepts=[ConceptDefinition.from_json(concept) for concept in saved["concepts"]],
            tables=[TableSettings.from_json(table) for table in saved["tables"]],
            table_ids=[{int(key): value for key, value in ids.items()} for ids in saved["table_ids"]],
            vocabulary=saved["vocabulary"] and VocabularyFile.from_json(saved["vocabulary"]),
            parts=[Part.from_json(part) for part in saved["parts"]],
        )


class Preparation:
    """A preparation opened from its working folder.

    Files of the working folder are written once and never change, so the properties below are cached.
    """

    def __init__(self, work: StoragePath):
        self.work = work
        self.plan = PreparationPlan.from_json(self.read_json(PLAN_FILE))
        self.config, self.store, self.parts = self.plan.config, self.plan.store, self.plan.parts

    def read_json(self, name: str) -> Any:
        """The value in a JSON file of the working folder. Raises `UserError` if there is no such file."""
        (content,) = self.work.read_many([name])
        return json.loads(content)

    def source_of(self, part: int) -> TextSource:
        return self.plan.sources[self.parts[part].source]

    # The order of the training split ---------------------------------------------------------------------------------

    @cached_property
    def part_order(self) -> np.ndarray:
        """The parts in the order of the training split, (parts,) int64."""
        return Permutation(len(self.parts), self._seed).order()

    def document_order(self, part: int, count: int) -> np.ndarray:
        """The `count` training documents of a part in the order of the training split, (count,) int64."""
        # A seed for each part, derived from the corpus's seed: with the same one, all parts of equal size would be
        # permuted in the same way. SeedSequence is stable across NumPy versions.
        seed = np.random.SeedSequence([self._seed, part]).generate_state(1, np.uint64)
        return Permutation(count, int(seed[0])).order()

    @property
    def _seed(self) -> int:
        return self.config.seed % (1 << 64)

    # Results of earlier stages ---------------------------------------------------------------------------------------

    @cached_property
    def survey(self) -> dict[str, Any]:
        """Totals of the survey: number of documents, of characters, and of lines of each part."""
        return self.read_json("survey.json")

    @cached_property
    def first_lines(self) -> list[int]:
        """For each part, the number of its first line in its file, from 1."""
        numbers, last_file, line = [], "", 1
        for part, lines in zip(self.parts, self.survey["lines"]):
            line = line if part.files[0].address == last_file else 1
            numbers.append(line)
            last_file, line = part.files[0].address, line + lines
        return numbers

    @cached_property
    def clusters(self) -> dict[str, str]:
        """Hash of a document to the split key of its cluster, for documents whose own key is another one."""
        return json.loads(self.work.read("clusters.json") or b"{}")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The given tokenizer, or the one that was trained by an earlier stage."""
        name = SENTENCEPIECE_FILE if self.plan.vocabulary is None else self.plan.vocabulary.file
        (content,) = self.work.read_many([name])
        if self.plan.vocabulary is None:
            return SentencePieceTokenizer(content)
        return self.plan.vocabulary.load(content)

    @cached_property
    def annotators(self) -> list[Annotator]:
        """The annotators by priority. A label's origin in the store is an index into this list."""
        annotators: list[Annotator] = [DocumentLabels([concept.name for concept in self.plan.concepts])]
        annotators += [TableLabels(table, self.table_folder(number)) for number, table in enumerate(self.plan.tables)]
        annotators.append(RuleLabels(self.plan.concepts))
        if self.learned_concepts:
            (content,) = self.work.read_many([LEARNED_FILE])
            annotators.append(LearnedLabels.from_bytes(content, self.embed))
        return annotators

    @property
    def learned_concepts(self) -> list[ConceptDefinition]:
        """The concepts that are learned from examples."""
        return [concept for concept in self.plan.concepts if concept.is_learned]

    @cached_property
    def embed(self) -> Embed:
        """The embedding that concepts are learned over."""
        return model_embeddings(self.config.embeddings) if self.config.embeddings else hashed_words

    # Files of the working folder -------------------------------------------------------------------------------------

    def missing(self, names: Sequence[str]) -> list[str]:
        """The names of those files that do not exist yet."""
        return [name for name in names if not self.work.has(name)]

    def parts_missing_in(self, folder: str) -> list[int]:
        """The parts whose JSON file does not exist yet in a folder of the working folder."""
        # The JSON file of a part is its last one to be written, so its presence means that the part is complete.
        existing = self.work.names(folder)
        return [number for number in range(len(self.parts)) if f"{folder}/{number:06}.json" not in existing]

    def table_folder(self, number: int) -> StoragePath:
        """The folder of a joined table of labels."""
        return self.work / f"annotators/{number:02}"


@cache
def open_preparation(work: StoragePath) -> Preparation:
    """Opens the preparation in a working folder, once per process."""
    return Preparation(work)


def start_preparation(work: StoragePath, plan: PreparationPlan, vocabulary: bytes | None) -> None:
    """Writes the plan to the working folder, or verifies that the plan already there is the same, to resume it.

    vocabulary: content of the plan's vocabulary file. Raises `UserError` if the working folder has another plan.
    """
    described = json.loads(json.dumps(plan.to_json()))
    content = work.read(PLAN_FILE)
    if content is None:
        # The plan comes last: a folder that has one has all that the first task needs.
        if plan.vocabulary is not None and vocabulary is not None:
            work.write(plan.vocabulary.file, vocabulary)
        work.write_json(PLAN_FILE, described)
    elif (saved := json.loads(content)) != described:
        changed = next(key for key in described if saved.get(key) != described[key])
        removed = f"it and {plan.store}" if plan.store.is_remote else "it"
        raise UserError(
            f"{work} contains an interrupted preparation with different {_PLAN_WORDS.get(changed, changed)}: remove "
            f"{removed} to start again, or undo the change to resume it."
        )
    open_preparation.cache_clear()


_PLAN_WORDS = {
    "parts": "input files",
    "vocabulary": "token ids",
    "table_ids": "tables of labels",
    "tables": "tables of labels",
}

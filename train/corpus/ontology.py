"""Known concepts: what they are called, and the rules or examples that find them.

The bundled ones are in `ontology.toml`; others are written the same way, in files of their own. By rule, a concept
holds for a chunk when the chunk's document is in one of its modules, when one of its words or phrases is in the text,
or when its pattern is. A concept without rules is learned from examples (`corpus/examples.py`). Labels are
positive-only: a missing one says nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steerling_jax.concepts.catalogue import comparable
from steerling_jax.errors import UserError
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.sources import toml_files, toml_tables

BUNDLED = "bundled"
_BUNDLED_FILE = Path(__file__).with_name("ontology.toml")
_WORD = re.compile(r"[a-z0-9]+")
_TEXTS = ("name", "group", "description", "pattern", "contributor")
_NEEDED = ("name", "group", "description")
_LISTS = ("modules", "words", "sources", "examples", "counterexamples")
LEAST_EXAMPLES = 4


@dataclass(frozen=True)
class ConceptDefinition:
    """A known concept and how to find it.

    modules, words, pattern: the rules; `sources` limits words and pattern to documents of these sources.
    examples, counterexamples: texts that are about it, and texts that might seem so. A concept with rules is checked by
    them; one without is learned from them. most: the largest share of all chunks that a learned concept may label.
    contributor: who to thank or to ask.
    """

    id: int
    name: str
    group: str
    description: str
    modules: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pattern: str = ""
    sources: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    counterexamples: tuple[str, ...] = ()
    most: float = 0.01
    contributor: str = ""

    @property
    def has_rules(self) -> bool:
        return bool(self.modules or self.words or self.pattern)

    @property
    def is_learned(self) -> bool:
        return bool(self.examples) and not self.has_rules

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ConceptDefinition:
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in saved.items()}
        return cls(**values)

    def about(self) -> dict[str, Any]:
        """What stores and reports keep of it: id, name, group, description."""
        return {"id": self.id, "name": self.name, "group": self.group, "description": self.description}


class MatchRules:
    """The rules of concepts, made ready; an annotator."""

    name = "rules"

    def __init__(self, concepts: Sequence[ConceptDefinition]):
        self.concepts = tuple(concepts)
        self._by_module: dict[str, list[int]] = {}
        self._by_word: dict[str, list[int]] = {}
        for concept in concepts:
            for module in concept.modules:
                self._by_module.setdefault(module, []).append(concept.id)
            for word in concept.words:
                self._by_word.setdefault(word, []).append(concept.id)
                self._by_word.setdefault(f"{word}s", []).append(concept.id)
        self._by_id = {concept.id: concept for concept in concepts}
        self._patterns = [(c, re.compile(c.pattern, re.MULTILINE)) for c in concepts if c.pattern]

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        """Ids of the concepts that hold for each chunk, in their order."""
        of_module = self._module_labels(document.module)
        patterns = [(c.id, pattern) for c, pattern in self._patterns if _applies(c, document.source)]
        found = []
        for chunk in chunks:
            labels = of_module | self._word_labels(chunk.text, document.source)
            labels |= {id for id, pattern in patterns if id not in labels and pattern.search(chunk.text)}
            found.append(sorted(labels))
        return found

    def _module_labels(self, module: str) -> set[int]:
        parts = module.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return {id for prefix in prefixes for id in self._by_module.get(prefix, ())}

    def _word_labels(self, text: str, source: str) -> set[int]:
        words = _WORD.findall(text.lower())
        phrases = {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
        ids = {id for phrase in phrases & self._by_word.keys() for id in self._by_word[phrase]}
        return {id for id in ids if _applies(self._by_id[id], source)}


def _applies(concept: ConceptDefinition, source: str) -> bool:
    return not concept.sources or source in concept.sources


def read_concepts(paths: Sequence[str | Path] = (BUNDLED,)) -> list[ConceptDefinition]:
    """The concepts of files and of folders of files, numbered in this order; `bundled` names the bundled ones.

    Raises `UserError` that names file, concept and field.
    """
    found: dict[str, tuple[ConceptDefinition, Path]] = {}
    for path in paths:
        before = len(found)
        for file in [_BUNDLED_FILE] if str(path) == BUNDLED else toml_files([path]):
            for number, table in enumerate(toml_tables(file, "concept"), 1):
                concept = _concept(len(found), number, table, file)
                key = comparable(concept.name)
                if key in found:
                    raise UserError(
                        f"{file}: the concept {concept.name!r} is there already, in {found[key][1]}: rename one."
                    )
                found[key] = concept, file
        if len(found) == before:
            raise UserError(f"{path} describes no concept: add a [[concept]] table with name, group and description.")
    return [concept for concept, _ in found.values()]


def is_bundled(path: Path) -> bool:
    """Whether it is the file of the bundled concepts."""
    return path.absolute() == _BUNDLED_FILE


def _concept(id: int, number: int, table: dict[str, Any], path: Path) -> ConceptDefinition:
    where = f"{path}: concept {table.get('name') or number!r}"
    known = [field.name for field in fields(ConceptDefinition) if field.name != "id"]
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{where}: {key} is not a field of a concept; the fields are {', '.join(known)}.")
        if key in _TEXTS and not isinstance(value, str):
            raise UserError(f"{where}: {key} is {value!r}; give a text.")
        if key in _LISTS and not (isinstance(value, list) and all(isinstance(one, str) and one for one in value)):
            raise UserError(f"{where}: {key} is {value!r}; give a list of texts.")
    if missing := [key for key in _NEEDED if not table.get(key, "").strip()]:
        raise UserError(f"{where} has no {missing[0]}: add one.")
    if not isinstance(table.get("most", 0.5), float) or not 0 < table.get("most", 0.5) < 1:
        raise UserError(f"{where}: most is {table['most']!r}; give the share of chunks, between 0 and 1.")
    try:
        re.compile(table.get("pattern", ""), re.MULTILINE)
    except re.error as error:
        raise UserError(f"{where}: its pattern is not a regular expression, {error}.") from error
    for word in table.get("words", ()):
        if not re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)?", word):
            raise UserError(f"{where}: words holds {word!r}; give one or two words of small letters and digits a-z.")
    concept = ConceptDefinition.from_json({"id": id} | table)
    if not concept.has_rules and len(concept.examples) < LEAST_EXAMPLES:
        raise UserError(
            f"{where} has no rule and {len(concept.examples)} examples: give modules, words or a pattern, or at least "
            f"{LEAST_EXAMPLES} examples to learn it from."
        )
    return concept


def check_examples(concepts: Sequence[ConceptDefinition]) -> None:
    """Raises `UserError` for a concept whose rules miss one of its own examples, or take a counterexample."""
    rules = MatchRules(concepts)
    for concept in concepts:
        if not concept.has_rules:
            continue
        source = concept.sources[0] if concept.sources else "text"
        for wanted, texts in ((True, concept.examples), (False, concept.counterexamples)):
            for text in texts:
                (labels,) = rules.annotate(Document("example", source, text), [TextChunk(text, 0)])
                if (concept.id in labels) != wanted:
                    does = "do not find its example" if wanted else "take its counterexample"
                    raise UserError(f"The rules of the concept {concept.name!r} {does} {text[:60]!r}: change either.")

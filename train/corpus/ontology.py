"""Known concepts: their definitions, read from TOML files, with the rules or examples that find them in text.

The bundled ones are in `ontology.toml`; users describe their own in the same form. A concept with rules labels a chunk
if the chunk's document is in one of the concept's modules, if one of its words or phrases occurs in the text, or if its
pattern matches (`rules.py`). A concept without rules is learned from examples (`learned_labels.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steerling_jax.concepts.concept import comparable
from steerling_jax.errors import UserError
from steerling_jax.train.corpus.toml_files import check_fields, title, toml_files, toml_tables

BUNDLED = "bundled"  # stands for the bundled concepts among file names
MIN_EXAMPLES = 4
_BUNDLED_FILE = Path(__file__).with_name("ontology.toml")
_WORD_OR_PHRASE = re.compile(r"[a-z0-9]+( [a-z0-9]+)?")


@dataclass(frozen=True)
class ConceptDefinition:
    """A known concept and how to find it.

    modules, words, pattern: the rules: Python modules; words and phrases of two words, in lower case; a regular
    expression. sources: limits words and pattern to documents of these sources.
    examples, counterexamples: texts that are about the concept, and texts that could be mistaken for it. The rules of a
    concept are tested on them; a concept without rules is learned from them.
    most: the largest share of all chunks that a learned concept may label.
    contributor: a name or address for questions.
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
        """Its entry in a store's manifest and in reports: id, name, group, description."""
        return {"id": self.id, "name": self.name, "group": self.group, "description": self.description}


def read_concepts(paths: Sequence[str | Path] = (BUNDLED,)) -> list[ConceptDefinition]:
    """The concepts of files and of folders of files, numbered in this order; `bundled` stands for the bundled ones.

    Raises `UserError` that names file, concept and field.
    """
    concepts: dict[str, tuple[ConceptDefinition, Path]] = {}
    for path in paths:
        before = len(concepts)
        for file in [_BUNDLED_FILE] if str(path) == BUNDLED else toml_files([path]):
            for number, table in enumerate(toml_tables(file, "concept"), 1):
                concept = _concept(len(concepts), number, table, file)
                key = comparable(concept.name)
                if key in concepts:
                    raise UserError(
                        f"{file}: the concept {concept.name!r} is already defined in {concepts[key][1]}: rename one."
                    )
                concepts[key] = concept, file
        if len(concepts) == before:
            raise UserError(f"{path} describes no concept: add a [[concept]] table with name, group and description.")
    return [concept for concept, _ in concepts.values()]


def is_bundled(path: Path) -> bool:
    """Whether this is the file of the bundled concepts."""
    return path.absolute() == _BUNDLED_FILE


_LISTS = ("modules", "words", "sources", "examples", "counterexamples")
_FIELD_TYPES: dict[str, type] = {
    field.name: list if field.name in _LISTS else float if field.name == "most" else str
    for field in fields(ConceptDefinition)
    if field.name != "id"
}


def _concept(id: int, number: int, table: dict[str, Any], path: Path) -> ConceptDefinition:
    """The concept that a TOML table defines. Raises `UserError` for an invalid field."""
    where = title(path, "concept", number, table)
    check_fields(table, _FIELD_TYPES, required=("name", "group", "description"), title=where, kind="concept")
    if not 0 < table.get("most", 0.5) < 1:
        raise UserError(f"{where}: most is {table['most']!r}; give the share of chunks, between 0 and 1.")
    try:
        re.compile(table.get("pattern", ""), re.MULTILINE)
    except re.error as error:
        raise UserError(f"{where}: its pattern is not a regular expression, {error}.") from error
    for word in table.get("words", ()):
        if not _WORD_OR_PHRASE.fullmatch(word):
            raise UserError(
                f"{where}: words contains {word!r}; give one or two words of lower-case letters a-z and digits."
            )
    concept = ConceptDefinition.from_json({"id": id} | table)
    if not concept.has_rules and len(concept.examples) < MIN_EXAMPLES:
        raise UserError(
            f"{where} has no rule and {len(concept.examples)} examples: give modules, words or a pattern, or at least "
            f"{MIN_EXAMPLES} examples to learn it from."
        )
    return concept

"""The known concepts of the bundled corpus, and the rules that find them. Both are in `ontology.toml`.

A concept holds for a chunk when the chunk's document is in one of its modules, when one of its words or phrases is in
the text, or when its pattern is. Labels are positive-only: a missing one says nothing.
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.corpus import MAX_LABELS

from .documents import Document

_WORD = re.compile(r"[a-z0-9]+")
_TEXTS = ("name", "group", "description", "pattern")  # a concept's fields in the file; the first three are needed
_LISTS = ("modules", "words", "sources")


@dataclass(frozen=True)
class Concept:
    """A known concept and the rules for it. `sources` limits the words and the pattern to documents of these kinds."""

    id: int
    name: str
    group: str
    description: str
    modules: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pattern: str = ""
    sources: tuple[str, ...] = ()


class Ontology:
    """The concepts in order of id, with their rules made ready."""

    def __init__(self, concepts: Sequence[Concept]):
        self.concepts = tuple(concepts)
        self._by_name = {concept.name: concept.id for concept in concepts}
        self._by_module: dict[str, list[int]] = {}
        self._by_word: dict[str, list[int]] = {}
        for concept in concepts:
            for module in concept.modules:
                self._by_module.setdefault(module, []).append(concept.id)
            for word in concept.words:
                self._by_word.setdefault(word, []).append(concept.id)
                self._by_word.setdefault(f"{word}s", []).append(concept.id)
        self._patterns = [(c, re.compile(c.pattern, re.MULTILINE)) for c in concepts if c.pattern]

    def label_chunk(self, text: str, document: Document) -> list[int]:
        """Ids of the concepts that hold for a chunk with this text, at most 16, the document's own labels first."""
        own = [self.id_of(name, document) for name in document.labels]
        found = self._module_labels(document.module) | self._word_labels(text, document.source)
        found |= {c.id for c, pattern in self._patterns if _applies(c, document.source) and pattern.search(text)}
        return list(dict.fromkeys([*own, *sorted(found)]))[:MAX_LABELS]

    def id_of(self, name: str, document: Document) -> int:
        """Id of the concept of that name."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UserError(
                f"{document.name} is labelled with the unknown concept {name!r}: use a name from the ontology."
            ) from None

    def manifest(self) -> list[dict[str, Any]]:
        """What the store and the reports need to know: id, name, group, description."""
        return [{"id": c.id, "name": c.name, "group": c.group, "description": c.description} for c in self.concepts]

    def _module_labels(self, module: str) -> set[int]:
        parts = module.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return {id for prefix in prefixes for id in self._by_module.get(prefix, ())}

    def _word_labels(self, text: str, source: str) -> set[int]:
        words = _WORD.findall(text.lower())
        phrases = {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
        ids = {id for phrase in phrases & self._by_word.keys() for id in self._by_word[phrase]}
        return {id for id in ids if _applies(self.concepts[id], source)}


def _applies(concept: Concept, source: str) -> bool:
    return not concept.sources or source in concept.sources


def load_ontology(path: str | Path) -> Ontology:
    """An ontology file: `[[concept]]` tables with name, group, description and rules. Ids are file order."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("concept", [])
    except OSError as error:
        raise UserError(f"Cannot read the ontology {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"The ontology {path} is not valid TOML: {error}.") from error
    concepts = [_concept(number, table, path) for number, table in enumerate(tables)]
    if len({concept.name for concept in concepts}) != len(concepts):
        raise UserError(f"Two concepts of {path} have the same name: rename one.")
    return Ontology(concepts)


def _concept(number: int, table: dict[str, Any], path: str | Path) -> Concept:
    where = f"Concept {table.get('name', number)!r} of {path}"
    for key, value in table.items():
        if not (isinstance(value, str) if key in _TEXTS else key in _LISTS and isinstance(value, list)):
            raise UserError(f"{where}: {key} is not known, or is to be a {'list' if key in _LISTS else 'string'}.")
    if missing := [key for key in _TEXTS[:3] if not table.get(key)]:
        raise UserError(f"{where} has no {missing[0]}: add one.")
    try:
        re.compile(table.get("pattern", ""), re.MULTILINE)
    except re.error as error:
        raise UserError(f"{where}: its pattern is not a regular expression, {error}.") from error
    name, group, description, pattern = (table.get(key, "") for key in _TEXTS)
    modules, words, sources = (tuple(table.get(key, ())) for key in _LISTS)
    return Concept(number, name, group, description, modules, words, pattern, sources)


@functools.cache
def bundled_ontology() -> Ontology:
    """The ontology of the bundled corpus."""
    return load_ontology(Path(__file__).with_name("ontology.toml"))


def label_chunk(text: str, document: Document) -> list[int]:
    """Concept ids of a chunk by the bundled ontology."""
    return bundled_ontology().label_chunk(text, document)

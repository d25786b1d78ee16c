"""An annotator that labels chunks by the concepts' rules: modules, words and patterns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.ontology import ConceptDefinition

_WORD = re.compile(r"[a-z0-9]+")


class RuleLabels:
    """An annotator that applies the rules of all concepts at once.

    The words of all concepts are one dictionary: a chunk is split into words once, and each word and each pair of
    neighbouring words is looked up, independently of the number of concepts.
    """

    name = "rules"

    def __init__(self, concepts: Sequence[ConceptDefinition]):
        self._by_module: dict[str, list[int]] = {}
        self._by_word: dict[str, list[int]] = {}
        for concept in concepts:
            for module in concept.modules:
                self._by_module.setdefault(module, []).append(concept.id)
            for word in concept.words:
                self._by_word.setdefault(word, []).append(concept.id)
                self._by_word.setdefault(f"{word}s", []).append(concept.id)  # a simple plural
        self._by_id = {concept.id: concept for concept in concepts}
        self._patterns = [
            (concept, re.compile(concept.pattern, re.MULTILINE)) for concept in concepts if concept.pattern
        ]

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        """Ids of the concepts whose rules match each chunk, ascending."""
        of_module = self._module_labels(document.module)
        patterns = [(concept.id, pattern) for concept, pattern in self._patterns if _applies(concept, document.source)]
        by_chunk = []
        for chunk in chunks:
            labels = of_module | self._word_labels(chunk.text, document.source)
            labels |= {id for id, pattern in patterns if id not in labels and pattern.search(chunk.text)}
            by_chunk.append(sorted(labels))
        return by_chunk

    def _module_labels(self, module: str) -> set[int]:
        """Concepts of a module and of the packages that contain it."""
        parts = module.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return {id for prefix in prefixes for id in self._by_module.get(prefix, ())}

    def _word_labels(self, text: str, source: str) -> set[int]:
        words = _WORD.findall(text.lower())
        # A set intersection: most of a chunk's words and pairs are in no concept, and are not looked up one by one.
        phrases = {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
        ids = {id for phrase in phrases & self._by_word.keys() for id in self._by_word[phrase]}
        return {id for id in ids if _applies(self._by_id[id], source)}


def _applies(concept: ConceptDefinition, source: str) -> bool:
    """Whether a concept's words and pattern are used in documents of a source."""
    return not concept.sources or source in concept.sources


def check_examples(concepts: Sequence[ConceptDefinition]) -> None:
    """Raises `UserError` for a concept whose rules do not match one of its examples, or match a counterexample."""
    rules = RuleLabels(concepts)
    for concept in concepts:
        if not concept.has_rules:
            continue
        source = concept.sources[0] if concept.sources else "text"
        for is_example, texts in ((True, concept.examples), (False, concept.counterexamples)):
            for text in texts:
                (labels,) = rules.annotate(Document("example", source, text), [TextChunk(text, 0)])
                if (concept.id in labels) != is_example:
                    failure = "do not match its example" if is_example else "match its counterexample"
                    raise UserError(
                        f"The rules of the concept {concept.name!r} {failure} {text[:60]!r}: change either."
                    )

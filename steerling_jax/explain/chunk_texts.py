"""Text of a corpus store's chunks: decoded, split into words, and with the document and labels of a chunk."""

from __future__ import annotations

import re
from dataclasses import dataclass

from steerling_jax.bundle import Bundle
from steerling_jax.corpus.reader import Corpus
from steerling_jax.tokenizer import IdsOnlyTokenizer

_WORD = re.compile(r"\w*[^\W\d_]\w+")  # at least two characters with a letter among them
_CHUNKS_PER_READ = 256


@dataclass(frozen=True)
class StrongChunk:
    """A training chunk with a large activation of a concept.

    chunk: its number in the store. document: the name of its document. offset: its first token, counted from the start
    of the document. activation: the concept's mean over the chunk's masked positions. labels: names of its labels.
    """

    chunk: int
    document: str
    offset: int
    activation: float
    text: str
    labels: tuple[str, ...]


class ChunkTexts:
    """Reads chunks of a store by number, in blocks, and caches their words."""

    def __init__(self, bundle: Bundle, store: Corpus):
        self.tokenizer, self.store = bundle.tokenizer, store
        self._words: dict[int, list[str]] = {}
        # Numbers are mostly requested in ascending order, so the last block answers most requests without a read.
        self._block: tuple[int, list[list[int]]] = (-1, [])

    def text(self, number: int) -> str:
        """The decoded text of a chunk."""
        block = number // _CHUNKS_PER_READ
        if self._block[0] != block:
            first = block * _CHUNKS_PER_READ
            spans = self.store.read("chunk_spans", first, min(first + _CHUNKS_PER_READ, self.store.chunk_count))
            base = int(spans[0, 0])
            tokens = self.store.tokens(base, int(spans[-1, 1]))
            self._block = block, [tokens[start - base : end - base].tolist() for start, end in spans]
        return self.tokenizer.decode(self._block[1][number % _CHUNKS_PER_READ])

    def words(self, number: int) -> list[str]:
        """The case-folded words of a chunk that contain a letter; for a tokenizer without text, the token ids."""
        if number not in self._words:
            text = self.text(number).casefold()
            ids_only = isinstance(self.tokenizer, IdsOnlyTokenizer)
            self._words[number] = text.split() if ids_only else _WORD.findall(text)
        return self._words[number]

    def strong_chunk(self, number: int, activation: float, label_names: dict[int, str]) -> StrongChunk:
        """A chunk with its document, text and the names of its labels; `label_names` maps label ids to names."""
        chunk = self.store.chunk(number)
        record = self.store.documents[chunk.document]
        names = tuple(label_names.get(i, f"concept {i}") for i in chunk.labels)
        return StrongChunk(number, record.name, chunk.start - record.start, activation, self.text(number), names)

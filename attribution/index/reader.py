"""A finished index opened with its corpus and its model: its arrays, and the nearest chunks by each score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.attribution.index.build_unit import passage_of, unit_gradients
from steerling_jax.attribution.index.evidence import Score
from steerling_jax.attribution.index.influence import influence
from steerling_jax.attribution.index.passages import Passage
from steerling_jax.attribution.index.retrieval import (
    Best,
    VectorBlock,
    best_rows,
    best_signatures,
    shard_block,
    shard_rows,
)
from steerling_jax.attribution.index.settings import QUERY_MASKING, IndexSettings, check_model
from steerling_jax.attribution.index.signatures import Signatures, compute_signatures, concept_count, concept_weights
from steerling_jax.attribution.index.unit_plan import indexed_documents, is_done
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import IndexFolder, Unit, corpus_digest


class IndexedChunk(NamedTuple):
    """A chunk, by its unit and its number in that unit."""

    unit: int
    chunk: int


# The best chunks of a query with their values, largest first.
ScoredChunks = list[tuple[float, IndexedChunk]]


class UnitText(NamedTuple):
    """A unit's tokens (n,) and their suffix array (n,)."""

    tokens: np.ndarray
    suffixes: np.ndarray


class UnitChunks(NamedTuple):
    """For each chunk of a unit: its start in the unit's text, its offset in its document, and the document's number in
    the corpus store."""

    starts: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray


class Index:
    """An index with its corpus and model. An array is read when a score first needs it, and then stays in memory."""

    def __init__(self, folder: IndexFolder, state: dict[str, Any], corpus: CorpusStore, bundle: Bundle):
        self.folder, self.corpus, self.bundle = folder, corpus, bundle
        self.settings = IndexSettings.from_json(folder.metadata["settings"])
        self.thresholds: dict[Score, dict[str, list[float]]] = state["thresholds"]
        self.units: list[Unit] = [folder.unit(name) for name in state["units"]]
        self._documents = indexed_documents(corpus, self.settings.splits)
        self._gradients: dict[IndexedChunk, np.ndarray] = {}

    @cached_property
    def unit_texts(self) -> list[UnitText]:
        """Text and suffix array of each unit."""
        return [UnitText(unit.read("text"), unit.read("suffixes")) for unit in self.units]

    @cached_property
    def unit_chunks(self) -> list[UnitChunks]:
        """The chunks of each unit."""
        units = []
        for unit in self.units:
            numbers = np.array([self._documents[key] for key in unit.metadata["documents"]])
            documents = numbers[unit.read("chunk_documents")]
            units.append(UnitChunks(unit.read("chunk_starts"), unit.read("chunk_offsets"), documents))
        return units

    @cached_property
    def row_blocks(self) -> list[VectorBlock]:
        """Hidden rows, on the devices."""
        return self._read_rows("rows")

    @cached_property
    def gradient_blocks(self) -> list[VectorBlock]:
        """Stored gradients, on the devices."""
        return self._read_rows("gradients")

    @cached_property
    def signature_blocks(self) -> list[VectorBlock]:
        """Signatures, on the devices."""
        return [shard_block([unit.read("ids"), unit.read("codes")]) for unit in self.units]

    def _read_rows(self, name: str) -> list[VectorBlock]:
        blocks = []
        for unit in self.units:
            rows = unit.read(name)
            if not np.isfinite(rows).all():
                raise UserError(f"{unit.folder / name} contains NaN: remove {unit.folder} and run `steerling index`.")
            blocks.append(shard_rows(rows))
        return blocks

    def compute_signatures(self, passages: Sequence[Passage]) -> Signatures:
        """Signatures and hidden rows of query passages, at the noise of the chunks."""
        b = self.bundle
        return compute_signatures(b.params, passages, config=b.config, compute=b.compute, masking=self.settings.masking)

    def nearest(self, score: Score, queries: Signatures, row: int, k: int) -> ScoredChunks:
        """The k best chunks by "signature" or "representation" for row `row` of the queries' signatures."""
        if score == "signature":
            weights = concept_weights(queries.ids[[row]], queries.values[[row]], concept_count(self.bundle.config))[0]
            best = best_signatures(self.signature_blocks, weights, k)
        else:
            best = best_rows(self.row_blocks, queries.rows[row], k)
        return _scored_chunks(best)

    def most_influential(
        self, passages: Sequence[Passage], candidates: Sequence[Sequence[IndexedChunk]] | None, k: int
    ) -> list[ScoredChunks]:
        """For each query passage the k chunks with the largest influence on it.

        Compares all chunks if the index stores gradients (`candidates` is None), else each query's candidates.
        """
        queries = unit_gradients(self.bundle, passages, self.settings, QUERY_MASKING)
        if candidates is None:
            return [_scored_chunks(best_rows(self.gradient_blocks, query, k)) for query in queries]
        # One batch for the candidates of all queries: many queries share candidates.
        gradients = self._chunk_gradients(sorted({chunk for chunks in candidates for chunk in chunks}))
        results = []
        for query, chunks in zip(queries, candidates, strict=True):
            values = influence(query[None], np.stack([gradients[chunk] for chunk in chunks]))[0]
            results.append(sorted(zip(map(float, values), chunks, strict=True), key=lambda one: -one[0])[:k])
        return results

    def _chunk_gradients(self, chunks: Sequence[IndexedChunk]) -> dict[IndexedChunk, np.ndarray]:
        """Gradient features (F,) float32 of each chunk, computed once."""
        missing = [chunk for chunk in chunks if chunk not in self._gradients]
        if missing:
            passages = [self.passage(chunk) for chunk in missing]
            features = unit_gradients(self.bundle, passages, self.settings, self.settings.gradient_masking)
            self._gradients.update(zip(missing, features, strict=True))
        return {chunk: self._gradients[chunk] for chunk in chunks}

    def passage(self, chunk: IndexedChunk) -> Passage:
        """A chunk of the corpus with its context, as it was indexed."""
        start, end = self.span(chunk)
        document = self.corpus.documents[int(self.unit_chunks[chunk.unit].documents[chunk.chunk])]
        tokens = self.corpus.tokens(max(document.start, start - self.settings.context), end).astype(np.int32)
        return passage_of(tokens, len(tokens) - (end - start), len(tokens), self.settings.context)

    def span(self, chunk: IndexedChunk) -> tuple[int, int]:
        """A chunk's token span in the corpus store."""
        unit = self.unit_chunks[chunk.unit]
        start = self.corpus.documents[int(unit.documents[chunk.chunk])].start + int(unit.offsets[chunk.chunk])
        number = self.corpus.chunks_between(start, start + 1)[0]
        return start, int(self.corpus.read("chunk_spans", number, number + 1)[0, 1])

    def corpus_position(self, unit: int, position: int) -> int:
        """Position in the corpus store of a token of a unit's text."""
        chunk, chunks = self.chunk_at(unit, position).chunk, self.unit_chunks[unit]
        document = self.corpus.documents[int(chunks.documents[chunk])]
        return document.start + int(chunks.offsets[chunk]) + position - int(chunks.starts[chunk])

    def chunk_at(self, unit: int, position: int) -> IndexedChunk:
        """The chunk that contains a token of a unit's text."""
        return IndexedChunk(unit, int(np.searchsorted(self.unit_chunks[unit].starts, position, side="right")) - 1)

    def threshold(self, score: Score, length: int) -> float:
        """A score's threshold for a span of `length` tokens, interpolated in the logarithm of the length."""
        table = self.thresholds[score]
        return float(np.interp(np.log(max(length, 1)), np.log(table["lengths"]), table["values"]))


def open_index(folder: str | Path, corpus: CorpusStore, bundle: Bundle) -> Index:
    """Opens a finished index. Raises `UserError` if it is incomplete or belongs to another checkpoint or corpus."""
    index = IndexFolder(folder)
    check_model(index, bundle)
    state = index.current()
    settings = IndexSettings.from_json(index.metadata["settings"])
    if state["corpus"] != corpus_digest(list(indexed_documents(corpus, settings.splits))):
        raise UserError(
            f"The index {folder} was made from another corpus than {corpus.folder}, or that corpus has changed since: "
            "run `steerling index` with it again, or give the right corpus with --corpus."
        )
    missing = [name for name in state["units"] if not is_done(index, name)]
    if missing:
        raise UserError(f"The unit {missing[0]} of the index {folder} is missing: run `steerling index` on it again.")
    return Index(index, state, corpus, bundle)


def _scored_chunks(best: Best) -> ScoredChunks:
    return [
        (float(value), IndexedChunk(int(block), int(number)))
        for value, block, number in zip(best.values, best.blocks, best.numbers, strict=True)
    ]

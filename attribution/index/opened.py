"""An open index: its arrays, the corpus and the model it is of, and the chunks that are nearest by each score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.attribution.index.evidence import Score
from steerling_jax.attribution.index.influence import influence
from steerling_jax.attribution.index.passages import Passage
from steerling_jax.attribution.index.plan import QUERY_MASKING, IndexSettings, check_model, indexed_documents, is_done
from steerling_jax.attribution.index.retrieval import Best, VectorBlock, best_rows, best_signatures, place, place_rows
from steerling_jax.attribution.index.signatures import Signatures, concept_count, concept_weights, describe
from steerling_jax.attribution.index.unit import gradients, passage_of
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import IndexFolder, Unit, corpus_digest

NEAREST = 5  # hits of a question; influence ranks the candidates of so many, also where more or fewer are asked for


class IndexedChunk(NamedTuple):
    """A chunk: which unit, and its number there."""

    unit: int
    chunk: int


class Index:
    """An index with its corpus and model; arrays are read when a score first needs them, and kept."""

    def __init__(self, folder: IndexFolder, state: dict[str, Any], corpus: CorpusStore, bundle: Bundle):
        self.folder, self.corpus, self.bundle = folder, corpus, bundle
        self.settings = IndexSettings.from_json(folder.about["settings"])
        self.thresholds: dict[Score, dict[str, list[float]]] = state["thresholds"]
        self.units: list[Unit] = [folder.unit(name) for name in state["units"]]
        self._documents = indexed_documents(corpus, self.settings.splits)
        self._gradients: dict[IndexedChunk, np.ndarray] = {}

    @cached_property
    def texts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Text and suffix array of each unit."""
        return [(unit.read("text"), unit.read("suffixes")) for unit in self.units]

    @cached_property
    def chunks(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each unit's chunks: start in its text, offset in their document, the document's number in the corpus."""
        found = []
        for unit in self.units:
            numbers = np.array([self._documents[key] for key in unit.about["documents"]])
            owners = numbers[unit.read("chunk_documents")]
            found.append((unit.read("chunk_starts"), unit.read("chunk_offsets"), owners))
        return found

    @cached_property
    def rows(self) -> list[VectorBlock]:
        """Hidden rows on the devices."""
        return self._placed("rows")

    @cached_property
    def gradients(self) -> list[VectorBlock]:
        """Kept gradients on the devices."""
        return self._placed("gradients")

    def _placed(self, name: str) -> list[VectorBlock]:
        blocks = []
        for unit in self.units:
            rows = unit.read(name)
            if not np.isfinite(rows).all():
                raise UserError(f"{unit.folder / name} holds NaN: remove {unit.folder} and run `steerling index`.")
            blocks.append(place_rows(rows))
        return blocks

    @cached_property
    def signatures(self) -> list[VectorBlock]:
        """Signatures on the devices."""
        return [place([unit.read("ids"), unit.read("codes")]) for unit in self.units]

    def describe(self, passages: Sequence[Passage]) -> Signatures:
        b = self.bundle
        return describe(b.params, passages, config=b.config, compute=b.compute, masking=self.settings.masking)

    def nearest(self, score: Score, query: Signatures, row: int, k: int) -> list[tuple[float, IndexedChunk]]:
        """The k best chunks by signature or representation for row `row` of the described queries."""
        if score == "signature":
            weights = concept_weights(query.ids[[row]], query.values[[row]], concept_count(self.bundle.config))[0]
            best = best_signatures(self.signatures, weights, k)
        else:
            best = best_rows(self.rows, query.rows[row], k)
        return _places(best)

    def influences(
        self, passages: Sequence[Passage], candidates: Sequence[Sequence[IndexedChunk]] | None, k: int
    ) -> list[list[tuple[float, IndexedChunk]]]:
        """For each query passage the k chunks of most influence on it: among all chunks where the index keeps gradients
        (`candidates` is None), else among the query's candidates."""
        ours = gradients(self.bundle, passages, self.settings, QUERY_MASKING)
        if candidates is None:
            return [_places(best_rows(self.gradients, query, k)) for query in ours]
        theirs = self._gradients_of(sorted({place for places in candidates for place in places}))
        found = []
        for query, places in zip(ours, candidates, strict=True):
            values = influence(query[None], np.stack([theirs[place] for place in places]))[0]
            found.append(sorted(zip(map(float, values), places, strict=True), key=lambda one: -one[0])[:k])
        return found

    def _gradients_of(self, places: Sequence[IndexedChunk]) -> dict[IndexedChunk, np.ndarray]:
        """(F,) float32 of each; what was computed is remembered."""
        new = [place for place in places if place not in self._gradients]
        if new:
            passages = [self.passage(place) for place in new]
            found = gradients(self.bundle, passages, self.settings, self.settings.gradient_masking)
            self._gradients.update(zip(new, found, strict=True))
        return {place: self._gradients[place] for place in places}

    def passage(self, place: IndexedChunk) -> Passage:
        """A chunk of the corpus with its context, as it was indexed."""
        start, end = self.span(place)
        document = self.corpus.documents[int(self.chunks[place.unit][2][place.chunk])]
        tokens = self.corpus.tokens(max(document.start, start - self.settings.context), end).astype(np.int32)
        return passage_of(tokens, len(tokens) - (end - start), len(tokens), self.settings.context)

    def span(self, place: IndexedChunk) -> tuple[int, int]:
        """A chunk's tokens in the corpus."""
        _, offsets, owners = self.chunks[place.unit]
        start = self.corpus.documents[int(owners[place.chunk])].start + int(offsets[place.chunk])
        number = self.corpus.chunks_between(start, start + 1)[0]
        return start, int(self.corpus.read("chunk_spans", number, number + 1)[0, 1])

    def located(self, unit: int, position: int) -> int:
        """Where in the corpus a token of a unit's text is."""
        starts, offsets, owners = self.chunks[unit]
        chunk = int(np.searchsorted(starts, position, side="right")) - 1
        document = self.corpus.documents[int(owners[chunk])]
        return document.start + int(offsets[chunk]) + position - int(starts[chunk])

    def place_at(self, unit: int, position: int) -> IndexedChunk:
        """The chunk that a token of a unit's text is in."""
        return IndexedChunk(unit, int(np.searchsorted(self.chunks[unit][0], position, side="right")) - 1)

    def threshold(self, score: Score, length: int) -> float:
        """Of a score, for a span of so many tokens."""
        table = self.thresholds[score]
        return float(np.interp(np.log(max(length, 1)), np.log(table["lengths"]), table["values"]))


def open_index(folder: str | Path, corpus: CorpusStore, bundle: Bundle) -> Index:
    """Opens a finished index. Raises `UserError` where it is of another checkpoint or corpus, or not whole."""
    index = IndexFolder(folder)
    check_model(index, bundle)
    state = index.current()
    settings = IndexSettings.from_json(index.about["settings"])
    if state["corpus"] != corpus_digest(list(indexed_documents(corpus, settings.splits))):
        raise UserError(
            f"The index {folder} was made from another corpus than {corpus.folder}, or that one has changed since: "
            "run `steerling index` with it again, or give the right one with --corpus."
        )
    missing = [name for name in state["units"] if not is_done(index, name)]
    if missing:
        raise UserError(f"The index {folder} lacks unit {missing[0]}: run `steerling index` on it again.")
    return Index(index, state, corpus, bundle)


def _places(best: Best) -> list[tuple[float, IndexedChunk]]:
    return [
        (float(value), IndexedChunk(int(block), int(number)))
        for value, block, number in zip(best.values, best.blocks, best.numbers, strict=True)
    ]

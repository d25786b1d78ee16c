"""Asking an index: what in the corpus is closest to a span of text, by four scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from steerling_jax.api import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.evidence import Evidence, Hit, Score
from steerling_jax.influence import influence
from steerling_jax.io.corpus import CorpusStore
from steerling_jax.io.index import IndexFolder, Unit, corpus_digest
from steerling_jax.passages import Passage
from steerling_jax.retrieval import Best, Block, best_rows, best_signatures, place, place_rows
from steerling_jax.signatures import Described, concept_count, concept_weights, describe
from steerling_jax.suffixes import Span, longest_matches, maximal_spans, occurrences

from .plan import QUERY_MASKING, IndexSettings, check_model, indexed_documents, is_done
from .unit import gradients, passage_of

SCORES: tuple[Score, ...] = get_args(Score)
_CANDIDATES = 2  # times k, of signatures and of rows each, are ranked again by influence
_NO_TOKEN = -2  # matches nothing in a unit's text


class Place(NamedTuple):
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
        self._gradients: dict[Place, np.ndarray] = {}

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
    def rows(self) -> list[Block]:
        """Hidden rows on the devices."""
        return self._placed("rows")

    @cached_property
    def gradients(self) -> list[Block]:
        """Kept gradients on the devices."""
        return self._placed("gradients")

    def _placed(self, name: str) -> list[Block]:
        blocks = []
        for unit in self.units:
            rows = unit.read(name)
            if not np.isfinite(rows).all():
                raise UserError(f"{unit.folder / name} holds NaN: remove {unit.folder} and run `steerling index`.")
            blocks.append(place_rows(rows))
        return blocks

    @cached_property
    def signatures(self) -> list[Block]:
        """Signatures on the devices."""
        return [place([unit.read("ids"), unit.read("codes")]) for unit in self.units]

    def describe(self, passages: Sequence[Passage]) -> Described:
        b = self.bundle
        return describe(b.params, passages, config=b.config, compute=b.compute, masking=self.settings.masking)

    def nearest(self, score: Score, query: Described, row: int, k: int) -> list[tuple[float, Place]]:
        """The k best chunks by signature or representation for row `row` of the described queries."""
        if score == "signature":
            weights = concept_weights(query.ids[[row]], query.values[[row]], concept_count(self.bundle.config))[0]
            best = best_signatures(self.signatures, weights, k)
        else:
            best = best_rows(self.rows, query.rows[row], k)
        return _places(best)

    def influences(self, queries: Sequence[Query], k: int) -> list[list[tuple[float, Place]]]:
        """Of each query the k chunks of most influence on it: of all where gradients are kept, else of candidates."""
        passages = [query.passage for query in queries]
        ours = gradients(self.bundle, passages, self.settings, QUERY_MASKING)
        if self.settings.gradient_side:
            return [_places(best_rows(self.gradients, query, k)) for query in ours]
        candidates = [query.candidates(k) for query in queries]
        theirs = self._gradients_of(sorted({place for places in candidates for place in places}))
        found = []
        for query, places in zip(ours, candidates, strict=True):
            values = influence(query[None], np.stack([theirs[place] for place in places]))[0]
            found.append(sorted(zip(map(float, values), places, strict=True), key=lambda one: -one[0])[:k])
        return found

    def _gradients_of(self, places: Sequence[Place]) -> dict[Place, np.ndarray]:
        """(F,) float32 of each; what was computed is remembered."""
        new = [place for place in places if place not in self._gradients]
        if new:
            passages = [self.passage(place) for place in new]
            found = gradients(self.bundle, passages, self.settings, self.settings.gradient_masking)
            self._gradients.update(zip(new, found, strict=True))
        return {place: self._gradients[place] for place in places}

    def passage(self, place: Place) -> Passage:
        """A chunk of the corpus with its context, as it was indexed."""
        start, end = self.span(place)
        document = self.corpus.documents[int(self.chunks[place.unit][2][place.chunk])]
        tokens = self.corpus.tokens(max(document.start, start - self.settings.context), end).astype(np.int32)
        return passage_of(tokens, len(tokens) - (end - start), len(tokens), self.settings.context)

    def span(self, place: Place) -> tuple[int, int]:
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

    def place_at(self, unit: int, position: int) -> Place:
        """The chunk that a token of a unit's text is in."""
        return Place(unit, int(np.searchsorted(self.chunks[unit][0], position, side="right")) - 1)

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


def find_evidence(
    bundle: Bundle, index: Index, tokens: Sequence[int] | np.ndarray, start: int, end: int,
    scores: Sequence[Score] = SCORES, k: int = 5,
) -> Evidence:  # fmt: skip
    """What the corpus holds that is close to tokens [start, end) of a text, read after what stands before them.

    At most k hits a score, best first, those above the score's threshold only (`Evidence`). Masks, padding and ends of
    text are left out. Raises `UserError` for a span outside the text, one without a token, and unknown scores.
    """
    unknown = [score for score in scores if score not in SCORES]
    require(not unknown, f"{unknown} are no scores: choose among {', '.join(SCORES)}.")
    require(k >= 1, f"k is {k}, but it must be at least 1.")
    require(bundle is index.bundle, "The index was opened with another model: open it with this one.")
    query = Query(index, np.asarray(tokens, np.int32), start, end)
    thresholds: dict[Score, float] = {
        score: index.threshold(score, query.length) for score in scores if score in index.thresholds
    }
    hits: list[Hit] = []
    for score in thresholds:
        found = query.verbatim(k, thresholds[score]) if score == "verbatim" else query.chunks(score, k)
        hits += [hit for hit in found if hit.value > thresholds[score]]
    return Evidence(start, end, tuple(hits), thresholds)


def best_values(index: Index, tokens: np.ndarray, start: int, end: int) -> dict[Score, tuple[float, float]]:
    """Of each score the best value in the corpus for tokens [start, end) of a text, and its threshold. Raises
    `UserError` as `find_evidence` does."""
    query = Query(index, np.asarray(tokens, np.int32), start, end)
    best: dict[Score, float] = {
        score: float(query.longest.max(initial=0)) if score == "verbatim" else query.chunks(score, 1)[0].value
        for score in index.thresholds
    }
    return {score: (value, index.threshold(score, query.length)) for score, value in best.items()}


class Query:
    """One span of a text, cleaned of what is no text."""

    def __init__(self, index: Index, tokens: np.ndarray, start: int, end: int):
        require(
            0 <= start < end <= len(tokens),
            f"The span {start} to {end} is not inside the text of {len(tokens)} tokens.",
        )
        special = index.corpus.special
        kept = np.flatnonzero(~np.isin(tokens, [special.mask_id, special.pad_id, special.eos_id]))
        first, last = np.searchsorted(kept, [start, end])
        require(last > first, f"The span {start} to {end} holds no written token.")
        outside = tokens[kept][(tokens[kept] < 0) | (tokens[kept] >= index.bundle.config.vocab_size)]
        require(not outside.size, f"The text holds the id {outside[:1]}, outside the vocabulary.")
        self.index, self.start, self.end, self.length = index, start, end, int(last - first)
        self.passage = passage_of(tokens[kept], int(first), int(last), index.settings.context)
        boundary = tokens[kept[first:last]] == special.endofchunk_id  # text runs on over a chunk's end
        self._positions = kept[first:last][~boundary]
        text = tokens[self._positions]
        self._text = np.where(text == special.bos_id, _NO_TOKEN, text).astype(np.int64)

    @cached_property
    def described(self) -> Described:
        return self.index.describe([self.passage])

    @cached_property
    def longest(self) -> np.ndarray:
        """Of each token of the text, the longest match from there on, in any unit."""
        lengths = np.zeros(len(self._text), np.int64)
        for text, suffixes in self.index.texts:
            lengths = np.maximum(lengths, longest_matches(text, suffixes, self._text))
        return lengths

    def verbatim(self, k: int, above: float) -> list[Hit]:
        """Of the longest maximal spans of more than `above` tokens the first place in the corpus, then further places,
        k in all."""
        spans = sorted(maximal_spans(self.longest, int(above) + 1), key=lambda span: (span.start - span.end, span))
        places = {span: self._occurrences(span) for span in spans[:k]}
        chosen = [(span, n) for n in range(k) for span in spans[:k] if n < len(places[span])][:k]
        hits = [self._verbatim_hit(span, places[span][n], len(places[span])) for span, n in chosen]
        return sorted(hits, key=lambda hit: (-hit.value, hit.query, hit.start))

    def _occurrences(self, span: Span) -> list[tuple[int, int, int]]:
        """(start in the corpus, unit, position in its text) of every place, in the order of the corpus."""
        found = []
        for unit, (text, suffixes) in enumerate(self.index.texts):
            for position in occurrences(text, suffixes, self._text, [span])[0].tolist():
                found.append((self.index.located(unit, position), unit, position))
        return sorted(found)

    def _verbatim_hit(self, span: Span, where: tuple[int, int, int], count: int) -> Hit:
        start, unit, position = where
        size = span.end - span.start
        query = int(self._positions[span.start]), int(self._positions[span.end - 1]) + 1
        return self._hit("verbatim", size, start, self.index.located(unit, position + size - 1) + 1, query, count)

    def chunks(self, score: Score, k: int) -> list[Hit]:
        """The k best chunks by one of the other scores."""
        if score == "influence":
            found = self.index.influences([self], k)[0]
        else:
            found = self.index.nearest(score, self.described, 0, k)
        query = self.start, self.end
        return [self._hit(score, value, *self.index.span(place), query) for value, place in found]

    def candidates(self, k: int) -> list[Place]:
        """What influence is computed for: the best by signature and representation, and where the longest spans are."""
        dense: tuple[Score, ...] = ("signature", "representation")
        places = [
            place
            for score in dense
            if score == "representation" or concept_count(self.index.bundle.config)
            for _, place in self.index.nearest(score, self.described, 0, _CANDIDATES * k)
        ]
        spans = sorted(maximal_spans(self.longest, 2), key=lambda span: span.start - span.end)[:k]
        for span in spans:
            places += [self.index.place_at(unit, position) for _, unit, position in self._occurrences(span)[:1]]
        return list(dict.fromkeys(places))

    def _hit(
        self, score: Score, value: float, start: int, end: int, query: tuple[int, int], count: int | None = None
    ) -> Hit:
        corpus = self.index.corpus
        number = corpus.chunks_between(start, start + 1)[0]
        owner = corpus.chunk(number).document
        record = corpus.documents[owner]
        return Hit(
            score=score, value=float(value), chunk=number, document=owner, name=record.name, source=record.source,
            sha256=record.sha256, start=start, end=end, offset=start - record.start,
            text=self.index.bundle.tokenizer.decode(corpus.tokens(start, end).tolist()), query=query, occurrences=count,
        )  # fmt: skip


def _places(best: Best) -> list[tuple[float, Place]]:
    return [
        (float(value), Place(int(block), int(number)))
        for value, block, number in zip(best.values, best.blocks, best.numbers, strict=True)
    ]

"""Asking an index: what in the corpus is closest to a span of text, by four scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from steerling_jax.attribution.index.evidence import SCORES, Evidence, Hit, Score
from steerling_jax.attribution.index.opened import NEAREST, Index, IndexedChunk
from steerling_jax.attribution.index.signatures import Signatures, concept_count
from steerling_jax.attribution.index.suffixes import Span, longest_matches, maximal_spans, occurrences
from steerling_jax.attribution.index.unit import passage_of
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require

_CANDIDATES = 2  # times k, of signatures and of rows each, are ranked again by influence
_NO_TOKEN = -2  # matches nothing in a unit's text


def find_evidence(
    bundle: Bundle,
    index: Index,
    tokens: Sequence[int] | np.ndarray,
    start: int,
    end: int,
    scores: Sequence[Score] = SCORES,
    k: int = NEAREST,
) -> Evidence:
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
    def described(self) -> Signatures:
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
            found = influences([self], k)[0]
        else:
            found = self.index.nearest(score, self.described, 0, k)
        query = self.start, self.end
        return [self._hit(score, value, *self.index.span(place), query) for value, place in found]

    def candidates(self, k: int) -> list[IndexedChunk]:
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
            score=score,
            value=float(value),
            chunk=number,
            document=owner,
            name=record.name,
            source=record.source,
            sha256=record.sha256,
            start=start,
            end=end,
            offset=start - record.start,
            text=self.index.bundle.tokenizer.decode(corpus.tokens(start, end).tolist()),
            query=query,
            occurrences=count,
        )


def influences(queries: Sequence[Query], k: int) -> list[list[tuple[float, IndexedChunk]]]:
    """For each query the k chunks of most influence on it, with their influence, largest first.

    Where the index keeps no gradients, influence ranks candidates of the other scores; the queries share the work.
    """
    index = queries[0].index
    candidates = None if index.settings.gradient_side else [query.candidates(NEAREST) for query in queries]
    return index.influences([query.passage for query in queries], candidates, k)

"""Searching an index: the places of the corpus that are closest to a span of text, by four scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from steerling_jax.attribution.index.build_unit import passage_of
from steerling_jax.attribution.index.evidence import SCORES, Evidence, Hit, Score
from steerling_jax.attribution.index.reader import Index, IndexedChunk, ScoredChunks
from steerling_jax.attribution.index.signatures import Signatures, concept_count
from steerling_jax.attribution.index.suffixes import Span, longest_matches, maximal_spans, occurrences
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require

# Hits per score. Influence takes its candidates for this number also where another k is requested, so that the best
# candidate, and with it the threshold, does not depend on k.
NEAREST = 5
_CANDIDATES = 2  # candidates by signature, and by hidden row, are this factor times k
_NO_TOKEN = -2  # an id that matches no token of a unit's text


def find_evidence(
    bundle: Bundle,
    index: Index,
    tokens: Sequence[int] | np.ndarray,
    start: int,
    end: int,
    scores: Sequence[Score] = SCORES,
    k: int = NEAREST,
) -> Evidence:
    """Finds training data that is close to tokens [start, end) of a text, read after the tokens before them.

    Gives at most k hits per score, best first, and only those above the score's threshold (`Evidence`). Masks, padding
    and ends of text are ignored. Raises `UserError` for a span outside the text, a span without tokens, an id outside
    the vocabulary, an unknown score, and k below 1.
    """
    unknown = [score for score in scores if score not in SCORES]
    require(not unknown, f"unknown scores {unknown}: choose among {', '.join(SCORES)}.")
    require(k >= 1, f"k is {k}, but it must be at least 1.")
    require(bundle is index.bundle, "The index was opened with another model: open it with this one.")
    query = SpanQuery(index, np.asarray(tokens, np.int32), start, end)
    thresholds: dict[Score, float] = {
        score: index.threshold(score, query.length) for score in scores if score in index.thresholds
    }
    hits: list[Hit] = []
    best: dict[Score, float] = {}
    for score, threshold in thresholds.items():
        found = query.verbatim_hits(k, threshold) if score == "verbatim" else query.chunk_hits(score, k)
        best[score] = query.longest_match if score == "verbatim" else found[0].value
        hits += [hit for hit in found if hit.value > threshold]
    return Evidence(start, end, tuple(hits), thresholds, best)


def best_values(index: Index, tokens: np.ndarray, start: int, end: int) -> dict[Score, tuple[float, float]]:
    """For each score the best value in the corpus for tokens [start, end) of a text, and the score's threshold.

    Raises `UserError` as `find_evidence` does.
    """
    query = SpanQuery(index, np.asarray(tokens, np.int32), start, end)
    best: dict[Score, float] = {
        score: query.longest_match if score == "verbatim" else query.chunk_hits(score, 1)[0].value
        for score in index.thresholds
    }
    return {score: (value, index.threshold(score, query.length)) for score, value in best.items()}


class _Occurrence(NamedTuple):
    """A place of a span in the corpus store and in a unit's text; sorts in the order of the corpus."""

    corpus_position: int
    unit: int
    position: int


class SpanQuery:
    """A span of a text as a query, without masks, padding and ends of text."""

    def __init__(self, index: Index, tokens: np.ndarray, start: int, end: int):
        require(
            0 <= start < end <= len(tokens),
            f"The span {start} to {end} is not inside the text of {len(tokens)} tokens.",
        )
        special = index.corpus.special
        written = np.flatnonzero(~np.isin(tokens, [special.mask_id, special.pad_id, special.eos_id]))
        first, last = np.searchsorted(written, [start, end])
        require(last > first, f"The span {start} to {end} has no token other than masks, padding and ends of text.")
        text = tokens[written]
        outside = text[(text < 0) | (text >= index.bundle.config.vocab_size)]
        require(not outside.size, f"The text contains the id {outside[:1]}, which is outside the vocabulary.")
        self.index, self.start, self.end, self.length = index, start, end, int(last - first)
        self.passage = passage_of(text, int(first), int(last), index.settings.context)
        # Verbatim search runs across chunk boundaries, in the query as in the units' texts.
        boundary = text[first:last] == special.endofchunk_id
        self._positions = written[first:last][~boundary]
        span = tokens[self._positions]
        self._span = np.where(span == special.bos_id, _NO_TOKEN, span).astype(np.int64)

    @cached_property
    def signatures(self) -> Signatures:
        """Signature and hidden row of the span, one row."""
        return self.index.compute_signatures([self.passage])

    @cached_property
    def match_lengths(self) -> np.ndarray:
        """For each token of the span the length of the longest match that begins there, in any unit."""
        lengths = np.zeros(len(self._span), np.int64)
        for tokens, suffixes in self.index.unit_texts:
            lengths = np.maximum(lengths, longest_matches(tokens, suffixes, self._span))
        return lengths

    @property
    def longest_match(self) -> float:
        """The number of tokens of the longest verbatim match; 0 without any."""
        return float(self.match_lengths.max(initial=0))

    def verbatim_hits(self, k: int, above: float) -> list[Hit]:
        """At most k places of maximal spans of more than `above` tokens, longest first.

        Every span's first place precedes any span's second place, so that a frequent span does not displace the others.
        """
        spans = sorted(maximal_spans(self.match_lengths, int(above) + 1), key=lambda s: (s.start - s.end, s))[:k]
        places = {span: self._occurrences(span) for span in spans}
        chosen = [(span, n) for n in range(k) for span in spans if n < len(places[span])][:k]
        hits = [self._verbatim_hit(span, places[span][n], len(places[span])) for span, n in chosen]
        return sorted(hits, key=lambda hit: (-hit.value, hit.query, hit.start))

    def _occurrences(self, span: Span) -> list[_Occurrence]:
        """All places of a span, in the order of the corpus."""
        places = []
        for unit, (tokens, suffixes) in enumerate(self.index.unit_texts):
            for position in occurrences(tokens, suffixes, self._span, [span])[0].tolist():
                places.append(_Occurrence(self.index.corpus_position(unit, position), unit, position))
        return sorted(places)

    def _verbatim_hit(self, span: Span, place: _Occurrence, count: int) -> Hit:
        size = span.end - span.start
        query = int(self._positions[span.start]), int(self._positions[span.end - 1]) + 1
        # The end is looked up by itself: chunk boundaries between the two are tokens of the corpus, not of the span.
        end = self.index.corpus_position(place.unit, place.position + size - 1) + 1
        return self._hit("verbatim", size, (place.corpus_position, end), query, count)

    def chunk_hits(self, score: Score, k: int) -> list[Hit]:
        """The k best chunks by a score other than "verbatim"."""
        if score == "influence":
            best = most_influential([self], k)[0]
        else:
            best = self.index.nearest(score, self.signatures, 0, k)
        return [self._hit(score, value, self.index.span(chunk), (self.start, self.end)) for value, chunk in best]

    def influence_candidates(self, k: int) -> list[IndexedChunk]:
        """The chunks whose influence is computed: the best by signature and by hidden row, and those that contain the
        first places of the longest verbatim spans."""
        dense: tuple[Score, ...] = ("signature", "representation")
        chunks = [
            chunk
            for score in dense
            if score == "representation" or concept_count(self.index.bundle.config)
            for _, chunk in self.index.nearest(score, self.signatures, 0, _CANDIDATES * k)
        ]
        spans = sorted(maximal_spans(self.match_lengths, 2), key=lambda span: span.start - span.end)[:k]
        for span in spans:
            chunks += [self.index.chunk_at(unit, position) for _, unit, position in self._occurrences(span)[:1]]
        return list(dict.fromkeys(chunks))

    def _hit(
        self, score: Score, value: float, span: tuple[int, int], query: tuple[int, int], count: int | None = None
    ) -> Hit:
        corpus, (start, end) = self.index.corpus, span
        number = corpus.chunks_between(start, start + 1)[0]
        document = corpus.chunk(number).document
        record = corpus.documents[document]
        return Hit(
            score=score,
            value=float(value),
            chunk=number,
            document=document,
            name=record.name,
            source=record.source,
            sha256=record.sha256,
            start=start,
            end=end,
            offset=start - record.start,
            text=self.index.bundle.tokenizer.decode(corpus.tokens(start, end).tolist()),
            query=query,
            occurrences=count,
            license=corpus.license_of(record.source),
        )


def most_influential(queries: Sequence[SpanQuery], k: int) -> list[ScoredChunks]:
    """For each query of one index the k chunks with the largest influence on it, largest first.

    If the index stores no gradients, influence ranks the candidates of the other scores. The candidates' gradients are
    computed for all queries together.
    """
    index = queries[0].index
    candidates = None if index.settings.gradient_side else [query.influence_candidates(NEAREST) for query in queries]
    return index.most_influential([query.passage for query in queries], candidates, k)

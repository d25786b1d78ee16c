"""Thresholds: what each score gives to texts of no sense, so that "nothing close" can be said.

A nonsense text is put together from pieces of four tokens, each from a random place of the indexed documents. So every
four tokens of it occur, words are as common as they should be, and yet it says nothing. A threshold is the value that
one in a hundred such texts reaches. It depends on the length of the text, and is looked up by that.
"""

from __future__ import annotations

import numpy as np

from steerling_jax.attribution.index.evidence import Score
from steerling_jax.attribution.index.opened import Index
from steerling_jax.attribution.index.query import Query, influences
from steerling_jax.attribution.index.signatures import concept_count
from steerling_jax.progress import Progress

PIECE = 4
LENGTHS = (8, 16, 32, 64)
INFLUENCE_LENGTH = 32
_CONTEXT = 32  # tokens, nonsense too, before each text
_SHARE = 0.99
_INFLUENCE_SHARE = 4  # of the texts, one in so many
_SIGMAS = 2.326  # of a normal distribution's 99th percentile


def thresholds(index: Index, tell: Progress) -> dict[str, dict[str, list[float]]]:
    """For each score the lengths of texts and the values that 1 in 100 nonsense texts of that length reaches.

    Influence has one length. Without kept gradients it has a quarter of the texts, since those of candidates take time,
    and its value is mean + 2.33 standard deviations.
    """
    count = index.settings.nulls
    dense: list[Score] = ["signature", "representation"] if concept_count(index.bundle.config) else ["representation"]
    found: dict[Score, list[list[float]]] = {score: [] for score in ("verbatim", *dense)}
    draw = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        tell("thresholds", number, len(LENGTHS) + 1)
        queries = [nonsense(index, draw, length) for _ in range(count)]
        described = index.describe([query.passage for query in queries])
        found["verbatim"].append([float(query.longest.max()) for query in queries])
        for score in dense:
            found[score].append([index.nearest(score, described, row, 1)[0][0] for row in range(count)])
    tell("thresholds", len(LENGTHS), len(LENGTHS) + 1)
    table: dict[str, dict[str, list[float]]] = {
        score: {"lengths": list(LENGTHS), "values": [float(np.quantile(values, _SHARE)) for values in by_length]}
        for score, by_length in found.items()
    }
    kept = index.settings.gradient_side > 0
    texts = count if kept else max(count // _INFLUENCE_SHARE, 10)
    queries = [nonsense(index, draw, INFLUENCE_LENGTH) for _ in range(texts)]
    best = [found[0][0] for found in influences(queries, 1)]
    limit = float(np.quantile(best, _SHARE) if kept else np.mean(best) + _SIGMAS * np.std(best))
    return table | {"influence": {"lengths": [INFLUENCE_LENGTH], "values": [limit]}}


def nonsense(index: Index, draw: np.random.Generator, length: int) -> Query:
    """A text of `length` tokens of no sense, after a context of no sense."""
    total = _CONTEXT + length
    corpus, pieces = index.corpus, []
    ranges = [corpus.split(split) for split in index.settings.splits]
    sizes = np.array([max(end - start - PIECE, 0) for start, end in ranges], np.float64)
    special = list(corpus.special.names())
    for _ in range(100 * total if sizes.any() else 0):  # a corpus of nothing but shorter chunks would give none
        start = ranges[draw.choice(len(ranges), p=sizes / sizes.sum())]
        at = int(draw.integers(start[0], start[1] - PIECE))
        piece = corpus.tokens(at, at + PIECE)
        if not np.isin(piece, special).any():
            pieces.append(piece)
        if PIECE * len(pieces) >= total:
            break
    missing = total - PIECE * len(pieces)
    if missing > 0:
        start, end = ranges[0]
        pieces.append(np.resize(corpus.tokens(start, min(start + missing, end)), missing))
    return Query(index, np.concatenate(pieces)[:total].astype(np.int32), _CONTEXT, total)

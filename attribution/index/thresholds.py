"""Thresholds: the values that scores reach for random text, against which "nothing close" is decided.

The null model is text made of pieces of four tokens, each copied from a random position of the indexed documents. Its
tokens and short sequences are as frequent as in the corpus, but its content is random: a score that is as high for such
a text says nothing about where the text came from. A threshold is the 99th percentile of the best value in the corpus.

The best value depends on the length of the text: longer texts have longer verbatim matches by chance, and their vectors
vary less. So thresholds are estimated at several lengths and interpolated (`Index.threshold`).
"""

from __future__ import annotations

import numpy as np

from steerling_jax.attribution.index.evidence import Score
from steerling_jax.attribution.index.reader import Index
from steerling_jax.attribution.index.search import SpanQuery, most_influential
from steerling_jax.attribution.index.signatures import concept_count
from steerling_jax.progress import Progress

PIECE = 4
LENGTHS = (8, 16, 32, 64)
INFLUENCE_LENGTH = 32
_CONTEXT = 32  # random tokens before each random text
_QUANTILE = 0.99
_INFLUENCE_SHARE = 4  # without stored gradients, influence has one in so many of the texts
_SIGMAS = 2.326  # the 99th percentile of a normal distribution, in standard deviations


def compute_thresholds(index: Index, progress: Progress) -> dict[str, dict[str, list[float]]]:
    """For each score the lengths of random texts, and the value that 1 in 100 texts of that length reaches.

    Influence has one length. Without stored gradients each text needs gradients of its candidates, which are slow, so
    there are a quarter of the texts: too few for a 99th percentile, which is taken from a normal distribution with
    their mean and deviation.
    """
    count = index.settings.nulls
    dense: list[Score] = ["signature", "representation"] if concept_count(index.bundle.config) else ["representation"]
    dense = [] if index.settings.verbatim else dense
    best: dict[Score, list[list[float]]] = {score: [] for score in ("verbatim", *dense)}
    draw = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        progress("thresholds", number, len(LENGTHS) + 1)
        queries = [random_query(index, draw, length) for _ in range(count)]
        best["verbatim"].append([float(query.match_lengths.max()) for query in queries])
        if not dense:
            continue
        signatures = index.compute_signatures([query.passage for query in queries])
        for score in dense:
            best[score].append([index.nearest(score, signatures, row, 1)[0][0] for row in range(count)])
    progress("thresholds", len(LENGTHS), len(LENGTHS) + 1)
    table: dict[str, dict[str, list[float]]] = {
        score: {"lengths": list(LENGTHS), "values": [float(np.quantile(values, _QUANTILE)) for values in by_length]}
        for score, by_length in best.items()
    }
    if index.settings.verbatim or not index.settings.influence:
        return table
    return table | {"influence": {"lengths": [INFLUENCE_LENGTH], "values": [_influence_threshold(index, draw)]}}


def _influence_threshold(index: Index, draw: np.random.Generator) -> float:
    count, stored = index.settings.nulls, index.settings.gradient_side > 0
    texts = count if stored else max(count // _INFLUENCE_SHARE, 10)
    queries = [random_query(index, draw, INFLUENCE_LENGTH) for _ in range(texts)]
    best = [chunks[0][0] for chunks in most_influential(queries, 1)]
    return float(np.quantile(best, _QUANTILE) if stored else np.mean(best) + _SIGMAS * np.std(best))


def random_query(index: Index, draw: np.random.Generator, length: int) -> SpanQuery:
    """A query for a random text of `length` tokens after a random context."""
    total = _CONTEXT + length
    corpus, pieces = index.corpus, []
    ranges = [corpus.split(split) for split in index.settings.splits]
    sizes = np.array([max(end - start - PIECE, 0) for start, end in ranges], np.float64)
    special = list(corpus.special.names())
    # The number of attempts is limited: a corpus whose chunks are all shorter than a piece has no piece without a
    # special token.
    for _ in range(100 * total if sizes.any() else 0):
        split = ranges[draw.choice(len(ranges), p=sizes / sizes.sum())]
        start = int(draw.integers(split[0], split[1] - PIECE))
        piece = corpus.tokens(start, start + PIECE)
        if not np.isin(piece, special).any():
            pieces.append(piece)
        if PIECE * len(pieces) >= total:
            break
    missing = total - PIECE * len(pieces)
    if missing > 0:
        start, end = ranges[0]
        pieces.append(np.resize(corpus.tokens(start, min(start + missing, end)), missing))
    return SpanQuery(index, np.concatenate(pieces)[:total].astype(np.int32), _CONTEXT, total)

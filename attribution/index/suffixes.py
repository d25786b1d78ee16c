"""Verbatim search: a suffix array over token ids, and the longest spans of a query that occur in a text.

Token ids are compared as numbers. Negative ids match nothing: they mark the end of a document or a special token.

Legend: n tokens of the text, q positions of the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_STRIDE = 16  # tokens compared at once


class Span(NamedTuple):
    """Tokens [start, end) of the query."""

    start: int
    end: int


def suffix_array(tokens: np.ndarray) -> np.ndarray:
    """Start positions of the suffixes of tokens (n,) in ascending order of the suffixes, (n,) uint32.

    By prefix doubling: one sort, O(n log n), for each doubling of the length up to the longest repeat.
    """
    n = len(tokens)
    if n < 2:
        return np.zeros(n, np.uint32)
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64) + 1  # 0 is the position after the end
    bits = int(rank.max()).bit_length()
    width = 62 // bits
    # The first `width` tokens of a suffix fit in one 62-bit key. The first sort orders by all of them, which saves
    # log2(width) doublings; most suffixes of natural text differ there already.
    key = np.zeros(n, np.int64)
    for step in range(width):
        key <<= bits
        if step < n:
            key[: n - step] |= rank[step:]
    while True:
        order = np.argsort(key)
        ordered = key[order]
        # `rank` orders suffixes by their first `width` tokens, equal ones share a rank. All ranks differ at the end.
        rank[order] = np.concatenate([[1], 1 + np.cumsum(ordered[1:] != ordered[:-1])])
        if rank[order[-1]] == n:
            return order.astype(np.uint32)
        # The suffix that begins `width` tokens later has the order of the next `width` tokens: the pair of ranks orders
        # by twice as many.
        key = rank * (n + 1)
        key[: n - width] += rank[width:]
        width *= 2


def longest_matches(text: np.ndarray, suffixes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """For each position of the query the length of the longest span from there that occurs in the text, (q,) int64."""
    starts, ends = np.arange(len(query)), np.full(len(query), len(query))
    if not len(text):
        return np.zeros(len(query), np.int64)
    row = _insertion_rows(text, suffixes, query, starts, ends, after=False)
    lengths = np.zeros(len(query), np.int64)
    # In sorted order, the suffixes with the longest common prefix are the neighbours of the query's insertion row.
    for neighbour in (row - 1, row):
        inside = np.clip(neighbour, 0, len(text) - 1)
        lengths = np.maximum(lengths, _common_prefix(text, suffixes[inside], query, starts, ends))
    return lengths


def occurrences(text: np.ndarray, suffixes: np.ndarray, query: np.ndarray, spans: Sequence[Span]) -> list[np.ndarray]:
    """Positions in the text at which each span of the query occurs, ascending."""
    starts, ends = (np.array([span[i] for span in spans], np.int64) for i in range(2))
    first = _insertion_rows(text, suffixes, query, starts, ends, after=False)
    last = _insertion_rows(text, suffixes, query, starts, ends, after=True)
    return [np.sort(suffixes[a:b]) for a, b in zip(first, last, strict=True)]


def maximal_spans(lengths: np.ndarray, at_least: int) -> list[Span]:
    """The matches of at least `at_least` tokens that no other match contains, in order of position."""
    ends = np.arange(len(lengths)) + lengths
    # A match is contained in an earlier one unless it ends after all of those.
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    chosen = np.flatnonzero((lengths >= max(at_least, 1)) & (ends > before))
    return [Span(int(i), int(ends[i])) for i in chosen]


def verbatim_scores(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Length of the longest span that a query and a chunk share, (Q, N) int64, for texts without special tokens."""
    ends = np.cumsum([len(chunk) + 1 for chunk in chunks])
    joined = np.concatenate([np.append(np.asarray(chunk, np.int64), -1) for chunk in chunks])
    scores = np.zeros((len(queries), len(chunks)), np.int64)
    for row, query in enumerate(queries):
        # The short text is indexed and the long one is looked up in it, all positions at once.
        text = np.asarray(query, np.int64)
        lengths = longest_matches(text, suffix_array(text), joined)
        scores[row] = np.maximum.reduceat(lengths, np.concatenate([[0], ends[:-1]]))
    return scores


def _common_prefix(
    text: np.ndarray, positions: np.ndarray, query: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Number of tokens that the text from `positions` and the query [starts, ends) have in common; all (q,)."""
    length = np.zeros(len(starts), np.int64)
    positions = positions.astype(np.int64)
    # All pairs are compared `_STRIDE` tokens at a time; pairs that are equal so far are compared further.
    equal = np.flatnonzero((starts < ends) & (positions < len(text)))
    step = np.arange(_STRIDE)
    while equal.size:
        in_query = starts[equal, None] + length[equal, None] + step
        in_text = positions[equal, None] + length[equal, None] + step
        tokens = query[np.minimum(in_query, len(query) - 1)]
        same = text[np.minimum(in_text, len(text) - 1)] == tokens
        same &= (in_query < ends[equal, None]) & (in_text < len(text)) & (tokens >= 0)
        run = np.where(same.all(axis=1), _STRIDE, np.argmin(same, axis=1))
        length[equal] += run
        equal = equal[run == _STRIDE]
    return length


def _insertion_rows(
    text: np.ndarray, suffixes: np.ndarray, query: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, after: bool
) -> np.ndarray:
    """Rows of `suffixes` before which the query's spans [starts, ends) would be inserted, (q,).

    Before the suffixes that begin with the span, or, with `after`, behind them. A binary search of all spans at once.
    """
    low, high = np.zeros(len(starts), np.int64), np.full(len(starts), len(suffixes))
    while (unfinished := np.flatnonzero(low < high)).size:
        middle = (low[unfinished] + high[unfinished]) // 2
        position, first, end = suffixes[middle].astype(np.int64), starts[unfinished], ends[unfinished]
        length = _common_prefix(text, position, query, first, end)
        whole = first + length >= end  # the suffix begins with the span
        exhausted = position + length >= len(text)  # the suffix is a prefix of the span, so it sorts before it
        text_token = text[np.minimum(position + length, len(text) - 1)].astype(np.int64)
        query_token = query[np.minimum(first + length, len(query) - 1)].astype(np.int64)
        suffix_is_less = np.where(whole, after, exhausted | (text_token < query_token))
        low[unfinished] = np.where(suffix_is_less, middle + 1, low[unfinished])
        high[unfinished] = np.where(suffix_is_less, high[unfinished], middle)
    return low

"""Verbatim search: a suffix array over token ids, and the longest spans of a text that occur in it.

Ids are compared as numbers. Negative ones stand for what matches nothing: the end of a document, a special token.

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
    """Where the suffixes of tokens (n,) start, in ascending order, (n,) uint32. By prefix doubling: O(n log n) for each
    doubling of the longest repeat."""
    n = len(tokens)
    if n < 2:
        return np.zeros(n, np.uint32)
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64) + 1  # 0 stands for what is past the end
    bits = int(rank.max()).bit_length()
    width = 62 // bits
    key = np.zeros(n, np.int64)
    for step in range(width):  # the first tokens in one number: as good as several doublings
        key <<= bits
        if step < n:
            key[: n - step] |= rank[step:]
    while True:
        order = np.argsort(key)
        ordered = key[order]
        rank[order] = np.concatenate([[1], 1 + np.cumsum(ordered[1:] != ordered[:-1])])
        if rank[order[-1]] == n:
            return order.astype(np.uint32)
        key = rank * (n + 1)
        key[: n - width] += rank[width:]
        width *= 2


def longest_matches(text: np.ndarray, suffixes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """For each position of the query (q,), how many tokens from there on occur somewhere in text (n,), (q,) int64."""
    starts = np.arange(len(query))
    if not len(text):
        return np.zeros(len(query), np.int64)
    at = _bounds(text, suffixes, query, starts, np.full(len(query), len(query)), after=False)
    lengths = np.zeros(len(query), np.int64)
    for neighbour in (at - 1, at):  # what matches longest stands beside the place where the query would go
        row = np.clip(neighbour, 0, len(text) - 1)
        lengths = np.maximum(lengths, _common(text, suffixes[row], query, starts, np.full(len(query), len(query))))
    return lengths


def occurrences(text: np.ndarray, suffixes: np.ndarray, query: np.ndarray, spans: Sequence[Span]) -> list[np.ndarray]:
    """Where each span of the query begins in the text, ascending."""
    starts, ends = (np.array([span[i] for span in spans], np.int64) for i in range(2))
    first = _bounds(text, suffixes, query, starts, ends, after=False)
    last = _bounds(text, suffixes, query, starts, ends, after=True)
    return [np.sort(suffixes[a:b]) for a, b in zip(first, last, strict=True)]


def maximal_spans(lengths: np.ndarray, at_least: int) -> list[Span]:
    """From each position's longest match, the spans that no other contains, of `at_least` tokens, in order."""
    ends = np.arange(len(lengths)) + lengths
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    chosen = np.flatnonzero((lengths >= max(at_least, 1)) & (ends > before))
    return [Span(int(i), int(ends[i])) for i in chosen]


def verbatim_scores(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens of the longest span that query and chunk share, (Q, N) int64, for texts without special tokens."""
    ends = np.cumsum([len(chunk) + 1 for chunk in chunks])
    joined = np.concatenate([np.append(np.asarray(chunk, np.int64), -1) for chunk in chunks])
    found = np.zeros((len(queries), len(chunks)), np.int64)
    for row, query in enumerate(queries):
        text = np.asarray(query, np.int64)
        lengths = longest_matches(text, suffix_array(text), joined)
        found[row] = np.maximum.reduceat(lengths, np.concatenate([[0], ends[:-1]]))
    return found


def _common(text: np.ndarray, at: np.ndarray, query: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many tokens text from `at` on and query [starts, ends) have in common, all (q,)."""
    length = np.zeros(len(starts), np.int64)
    at = at.astype(np.int64)
    going = np.flatnonzero((starts < ends) & (at < len(text)))
    step = np.arange(_STRIDE)
    while going.size:
        here, there = starts[going, None] + length[going, None] + step, at[going, None] + length[going, None] + step
        same = text[np.minimum(there, len(text) - 1)] == query[np.minimum(here, len(query) - 1)]
        same &= (here < ends[going, None]) & (there < len(text)) & (query[np.minimum(here, len(query) - 1)] >= 0)
        run = np.where(same.all(axis=1), _STRIDE, np.argmin(same, axis=1))
        length[going] += run
        going = going[run == _STRIDE]
    return length


def _bounds(
    text: np.ndarray, suffixes: np.ndarray, query: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, after: bool
) -> np.ndarray:
    """The row of `suffixes` before which query [starts, ends) would go: before those that begin with it, or after."""
    low, high = np.zeros(len(starts), np.int64), np.full(len(starts), len(suffixes))
    while (open_rows := np.flatnonzero(low < high)).size:
        middle = (low[open_rows] + high[open_rows]) // 2
        at, first, end = suffixes[middle].astype(np.int64), starts[open_rows], ends[open_rows]
        length = _common(text, at, query, first, end)
        whole = first + length >= end
        past = at + length >= len(text)
        theirs = text[np.minimum(at + length, len(text) - 1)].astype(np.int64)
        ours = query[np.minimum(first + length, len(query) - 1)].astype(np.int64)
        before = np.where(whole, after, past | (theirs < ours))  # the suffix stands before the place
        low[open_rows] = np.where(before, middle + 1, low[open_rows])
        high[open_rows] = np.where(before, high[open_rows], middle)
    return low

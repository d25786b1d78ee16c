"""Verbatim search against plain loops over strings of ids."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.attribution.index.suffixes import (
    Span,
    longest_matches,
    maximal_spans,
    occurrences,
    suffix_array,
    verbatim_scores,
)

TEXTS = st.lists(st.integers(-1, 3), min_size=1, max_size=60)
QUERIES = st.lists(st.integers(-2, 3), min_size=1, max_size=40)


def places(text: list[int], piece: list[int]) -> list[int]:
    """Where a piece occurs; a piece with a negative id occurs nowhere."""
    if min(piece) < 0:
        return []
    return [i for i in range(len(text) - len(piece) + 1) if text[i : i + len(piece)] == piece]


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_suffixes_are_in_order(text: list[int]):
    found = suffix_array(np.array(text))
    assert found.tolist() == sorted(range(len(text)), key=lambda i: text[i:])


@settings(deadline=None, max_examples=200)
@given(TEXTS, QUERIES)
def test_matches_are_the_longest_and_all_occurrences_are_listed(text: list[int], query: list[int]):
    ids, tokens = np.array(text), np.array(query)
    suffixes = suffix_array(ids)
    lengths = longest_matches(ids, suffixes, tokens)
    for i, length in enumerate(lengths):
        longest = [n for n in range(1, len(query) - i + 1) if places(text, query[i : i + n])]
        assert length == max(longest, default=0)
    spans = maximal_spans(lengths, 1)
    found = occurrences(ids, suffixes, tokens, spans)
    assert [where.tolist() for where in found] == [places(text, query[a:b]) for a, b in spans]


def test_long_repeats_are_sorted():
    """A text of one token is the worst case of prefix doubling; equal documents are the usual one."""
    same = np.zeros(3000, np.int32)
    assert suffix_array(same).tolist() == list(range(2999, -1, -1))
    twice = np.tile(np.random.default_rng(0).integers(0, 9, 700), 2)
    found = suffix_array(twice)
    assert found.tolist() == sorted(range(1400), key=lambda i: twice[i:].tolist())


def test_maximal_spans_exclude_contained_spans():
    assert maximal_spans(np.array([3, 2, 1, 4, 3, 2, 1, 0]), 2) == [Span(0, 3), Span(3, 7)]
    assert maximal_spans(np.array([2, 3, 2, 1]), 1) == [Span(0, 2), Span(1, 4)]
    assert maximal_spans(np.zeros(3, np.int64), 0) == []


def test_scores_of_pairs():
    queries = [np.array([1, 2, 3, 4]), np.array([9, 9])]
    chunks = [np.array([0, 2, 3, 0]), np.array([1, 2, 3, 4, 5]), np.array([7])]
    assert verbatim_scores(queries, chunks).tolist() == [[2, 4, 0], [0, 0, 0]]

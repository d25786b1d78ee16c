"""Text from tokens that are committed out of order: final once it is given out, and independent of the order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.bundle import special_ids
from steerling_jax.decoding.text_ids import text_ids
from steerling_jax.decoding.trace import Commit
from steerling_jax.infer.text_stream import IncrementalDetokenizer, StopMatcher, TextWriter
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.io.weights.published_layout import read_config
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from tests.decoding.test_generation import SMALL
from tests.worlds.serving_world import SAMPLE, VOCABULARY

EOT = 58
CHAT = dataclasses.replace(SMALL, instruct=True, eot_id=EOT)
SPECIAL = SpecialIds(mask_id=63, endofchunk_id=62, bos_id=61, pad_id=60, eos_id=59, eot_id=EOT)
IDS = IdsOnlyTokenizer(SPECIAL, 64)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(SAMPLE, VOCABULARY))


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the text ends: before the stop text whose last character comes first, the longest of those."""
    for end in range(len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return min(found)
    return None


TOKENS = st.lists(st.sampled_from([1, 2, 12, 21, 62, *([3] * 4)]), min_size=1, max_size=24)
STOPS = st.lists(st.sampled_from(["3 3", "2 1", " 12", "1", "3 1 2 2", "21 3 3"]), max_size=3, unique=True)


@settings(deadline=None, derandomize=True)
@given(TOKENS, STOPS, st.integers(1, 30), st.randoms(use_true_random=False))
def test_any_order_gives_the_text_of_the_canvas(tokens: list[int], stops: list[str], most: int, random):
    """Tokens come in any order and in any groups; nothing that was given out changes."""
    writer = TextWriter(IDS, CHAT, 5, len(tokens), most, stops)
    given, rest, step = "", list(range(len(tokens))), 0
    random.shuffle(rest)
    while rest:
        count = random.randint(1, 3)
        now, rest = rest[:count], rest[count:]
        writer.commit([Commit(step, tuple(5 + i for i in now), tuple(tokens[i] for i in now), (0.0,) * len(now))])
        given, step = given + writer.take(), step + 1
    writer.end()
    given += writer.take()
    ids = text_ids(tokens, CHAT)
    whole = IDS.decode(ids[:most])
    end = first_stop(whole, stops)
    assert given == whole[:end]
    assert writer.finish == ("length" if end is None else "stop")
    if end is None:
        assert writer.tokens == len(ids[:most])


def test_end_of_turn_overwrites_and_ends():
    writer = TextWriter(IDS, CHAT, 0, 6, 6)
    writer.commit([Commit(0, (5,), (9,), (0.0,)), Commit(1, (0,), (1,), (0.0,)), Commit(2, (3,), (EOT,), (0.0,))])
    assert (writer.take(), writer.finish) == ("1", None)  # 1 and 2 are still masked
    writer.end()
    assert (writer.take(), writer.finish, writer.tokens) == ("", "stop", 1)


def test_masks_before_an_end_of_turn_are_no_text():
    writer = TextWriter(IDS, CHAT, 0, 6, 6)
    writer.commit([Commit(0, (2,), (9,), (0.0,)), Commit(1, (3,), (EOT,), (0.0,))])
    assert writer.take() == ""
    writer.end()
    assert (writer.take(), writer.finish, writer.tokens) == ("9", "stop", 1)


def test_golden_texts(golden: Path):
    """What the published package returned as text, from its commits."""
    config = read_config(golden / "base")[0]
    for case in json.loads((golden / "base" / "generate.json").read_text(encoding="utf-8")):
        if case["commits"] is None or case["generation"]["stop_tokens"]:
            continue
        special = dataclasses.replace(special_ids(config), eot_id=case["eot_id"])
        model = dataclasses.replace(config, instruct=case["eot_id"] is not None, eot_id=case["eot_id"])
        new = case["generation"]["max_new_tokens"]
        writer = TextWriter(IdsOnlyTokenizer(special, config.vocab_size), model, case["prompt_len"], new, new)
        writer.commit(Commit(**commit) for commit in case["commits"])
        writer.end()
        assert (writer.take(), writer.tokens) == (case["text"], case["generated_tokens"])
        assert writer.finish == ("length" if case["eot_id"] is None else "stop")


def test_commits_after_the_end_are_left_out():
    writer = TextWriter(IDS, CHAT, 0, 8, 2)
    commits = [Commit(i, (i,), (7,), (0.0,)) for i in range(5)]
    assert writer.commit(commits) == commits[:2]
    assert writer.commit(commits[2:]) == []
    assert (writer.take(), writer.finish) == ("7 7", "length")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
def test_pieces_join_to_the_whole(tokenizer: SentencePieceTokenizer, ids: list[int]):
    detokenizer = IncrementalDetokenizer(tokenizer)
    parts = [detokenizer.push(i) for i in ids]
    assert "".join(parts) + detokenizer.flush() == tokenizer.decode(ids)


def test_half_characters_are_held(tokenizer: SentencePieceTokenizer):
    """One byte a token: a character comes when its last byte does."""
    ids = tokenizer.encode("é😀")
    assert len(ids) == 6
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push(i) for i in ids] == ["", "é", "", "", "", "😀"]
    assert [detokenizer.push(i) for i in ids[:2] + ids[2:4]] == ["", "é", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_a_late_token_costs_what_an_early_one_does():
    decoded: list[int] = []

    class Counting(IdsOnlyTokenizer):
        def decode(self, ids) -> str:
            decoded.append(len(list(ids)))
            return super().decode(ids)

    detokenizer = IncrementalDetokenizer(Counting(SPECIAL, 64))
    for i in np.arange(3000) % 50:
        detokenizer.push(int(i))
    assert max(decoded) <= 3


def test_what_may_be_a_stop_is_held():
    stops = StopMatcher(["\n\nQ:", "END"])
    assert stops.push("one\n") == ("one", False)
    assert stops.push("\n") == ("", False)
    assert stops.push("two\n\nQ") == ("\n\ntwo", False)
    assert stops.push(": three") == ("", True)
    assert StopMatcher(["ab"]).push("aab") == ("a", True)
    assert StopMatcher([]).push("text") == ("text", False)

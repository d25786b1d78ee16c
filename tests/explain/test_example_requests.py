"""Requests for texts in which a feature fires: prompts, the order of features, and which texts are refused."""

from __future__ import annotations

import pytest

from steerling_jax.errors import UserError
from steerling_jax.explain.features.example_requests import FeatureDescription, is_copied, judge, next_target
from steerling_jax.explain.features.relevance import relevance

PASSAGE = "one two three four five six seven eight nine ten"


def test_a_prompt_states_name_words_and_passages_in_turn():
    said = FeatureDescription("open files", (" open", "open", "close", " "), ("first", "second", "third"))
    prompts = [said.prompt(attempt, 2) for attempt in range(3)]
    assert "about this subject: open files." in prompts[0]
    assert "Words that belong to it: open, close\n" in prompts[0]
    assert "Passage 1:\nfirst\n\nPassage 2:\nsecond\n" in prompts[0]
    assert said.shown(1, 2) == ("third", "first")
    assert "third" in prompts[1]
    assert said.shown(2, 2) == ("second", "third")
    assert said.shown(5, 3) == said.passages
    plain = FeatureDescription("", (), ()).prompt(0, 3)
    assert "subject" not in plain
    assert "Passage" not in plain


def test_the_feature_with_the_fewest_calls_comes_next():
    missing = {5: 1, 2: 2}
    assert next_target(missing, {}, {}) == 5
    assert next_target(missing, {}, {5: 1}) == 2
    assert next_target(missing, {2: 1}, {5: 3, 2: 2}) == 2
    assert next_target(missing, {2: 2}, {5: 3, 2: 2}) == 5
    assert next_target(missing, {5: 1, 2: 2}, {}) is None


def test_which_texts_are_kept():
    assert judge("A new text", True, [PASSAGE], set()) == "kept"
    assert judge("A new text", False, [PASSAGE], set()) == "silent"
    assert judge("A  NEW text", True, [PASSAGE], {"a new text"}) == "duplicate"
    assert is_copied("and two three four\nFive six seven eight nine", [PASSAGE])
    assert not is_copied("two three four five six seven eight, nine ten", [PASSAGE])
    assert is_copied("a short one here", ["Short one"])
    assert not is_copied("any text", ["", " "])


def test_relevance_prefers_names_to_tokens_and_rare_words():
    names = ["open files", "", "network sockets", "files", ""]
    promoted = [[" x"], [" socket", "listen"], ["y"], ["z"], [" soc", "fi", "and"]]
    scores = relevance("Files and sockets", names, promoted)
    assert scores[2] > scores[0] == scores[3] > 0
    assert 0 < scores[1] < scores[2]
    assert scores[4] == 0  # beginnings of fewer than four letters say nothing, nor do function words
    assert relevance("sockets", names, promoted)[2] == pytest.approx(1.0)
    assert relevance("heron", names, promoted) == [0.0] * 5
    with pytest.raises(UserError, match="has no words"):
        relevance(" … and", names, promoted)

"""Likelihoods and embeddings of an autoregressive model: exact, in batches, with a token that spans the boundary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.errors import UserError
from steerling_jax.evaluation.exact_likelihood import exact_scores
from steerling_jax.io.tokenizers.byte_table import ByteTable
from tests.worlds.decoders import GOLDEN_DECODERS


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(GOLDEN_DECODERS / "llama")


def log_probabilities(bundle: sj.Bundle, tokens: list[int]) -> np.ndarray:
    """log p of each token after the first, from the logits before it."""
    logits = np.asarray(sj.forward(bundle, tokens).logits[0, :-1], np.float64)
    top = logits.max(axis=-1, keepdims=True)
    normalised = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return normalised[np.arange(len(tokens) - 1), tokens[1:]]


def test_it_is_the_sum_over_the_continuation(bundle):
    draws = np.random.default_rng(0)
    pairs = [
        (draws.integers(0, 64, n).tolist(), draws.integers(0, 64, m).tolist()) for n, m in ((1, 3), (20, 9), (3, 1))
    ]
    found = sj.log_likelihoods(bundle, [*pairs, ([4], [])], batch_size=2)
    for value, (before, after) in zip(found, pairs):
        expected = log_probabilities(bundle, before + after)[len(before) - 1 :].sum()
        assert value == pytest.approx(expected, abs=1e-4)
        assert (value.tokens, value.samples, value.standard_error) == (len(after), 1, 0.0)
    assert found[3] == 0.0


def test_a_continuation_is_greedy_if_each_token_is_the_most_likely(bundle):
    text = sj.generate(bundle, [5, 6], sj.GenerationConfig(max_new_tokens=4, temperature=0.0)).tokens[2:].tolist()
    other = [*text[:3], (text[3] + 1) % 64]
    scores = sorted(exact_scores(bundle, [([5, 6], text), ([5, 6], other)], batch_size=4))
    assert [one.greedy for one in scores] == [True, False]


class Pairs(ByteTable):
    """Ids of letters, and one of the pair "tt"; a text begins with id 1."""

    prefix = (1,)

    def encode(self, text: str) -> list[int]:
        return [2 if letter == "T" else ord(letter) - 87 for letter in text.replace("tt", "T")]


def test_a_merged_token_is_scored_and_texts_begin_with_the_first_id(bundle):
    pieces: list[bytes | None] = [None] * 64
    config = dataclasses.replace(bundle.config, bos_token_id=1)
    tokenizer = Pairs(pieces, bundle.tokenizer.special, 64, "0" * 64)
    merging = dataclasses.replace(bundle, config=config, tokenizer=tokenizer)
    u, n, i, t, e, s = (ord(letter) - 87 for letter in "unites")
    joint = [1, u, n, i, 2, e, s]
    expected = log_probabilities(bundle, joint)[3:].sum()  # from the pair on
    assert sj.log_likelihood(merging, "unit", "tes") == pytest.approx(expected, abs=1e-4)
    whole = log_probabilities(bundle, [1, u, n])
    assert sj.log_likelihood(merging, "", "un") == pytest.approx(whole.sum(), abs=1e-4)
    assert sj.log_likelihood(merging, [], [1, u, n]) == pytest.approx(whole.sum(), abs=1e-4)
    assert t not in joint


def test_refusals(bundle):
    with pytest.raises(UserError, match="no token that begins a text"):
        sj.log_likelihood(bundle, [], [3])
    with pytest.raises(UserError, match="guidance needs a diffusion model"):
        sj.log_likelihood(bundle, [1], [3], cfg_scale=1.0)
    with pytest.raises(UserError, match="needs a model with concepts"):
        sj.embed(bundle, [1, 2], kind="known")


def test_embeddings_do_not_depend_on_the_other_texts(bundle):
    texts = [[3, 4, 5], list(range(30)), [9]]
    together = sj.embed(bundle, texts)
    for text, found in zip(texts, together):
        hidden = np.asarray(sj.forward(bundle, text).hidden[0], np.float32)
        np.testing.assert_allclose(found, hidden.mean(axis=0), atol=1e-5)

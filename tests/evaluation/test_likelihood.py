"""`sj.log_likelihood` and `sj.log_likelihoods`: values against enumeration, batching, guidance, refusals."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.window import edits_of_canvases
from steerling_jax.evaluation.likelihood import draw_masks, split
from steerling_jax.steering.resolve import plan_steering


@pytest.fixture(scope="module")
def bundle(golden):
    return sj.load(golden / "no_epsilon")


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("family", ["base", "no_epsilon"])
def test_one_token_has_one_masking(golden, family):
    """For one token the bound is its exact log-probability at the mask, whatever the number of samples."""
    bundle = sj.load(golden / family)
    context = list(range(1, 20))
    logits = sj.forward(bundle, [*context, bundle.config.mask_token_id]).logits[0, -1]
    assert sj.log_likelihood(bundle, context, [7], samples=3) == pytest.approx(log_softmax(logits)[7], abs=1e-4)


def test_the_estimate_is_the_average_over_maskings(bundle):
    """Enumerated for two tokens: both masked (weight 1 each), or one of them (weight 2), counts equally likely."""
    context, pair, mask = list(range(1, 18)), [7, 12], bundle.config.mask_token_id

    def log_p(canvas, at, token):
        return log_softmax(sj.forward(bundle, context + canvas).logits[0, len(context) + at])[token]

    both = log_p([mask, mask], 0, 7) + log_p([mask, mask], 1, 12)
    single = (2 * log_p([mask, 12], 0, 7) + 2 * log_p([7, mask], 1, 12)) / 2
    masks = draw_masks(2, 400, seed=0)
    first = masks[masks.sum(axis=1) == 1][:, 0].mean()
    drawn = (both + 2 * (first * log_p([mask, 12], 0, 7) + (1 - first) * log_p([7, mask], 1, 12))) / 2
    found = sj.log_likelihood(bundle, context, pair, samples=400, seed=0)
    assert found == pytest.approx(drawn, abs=1e-3)
    assert found == pytest.approx((both + single) / 2, rel=0.05)


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("family", ["base", "no_epsilon", "backbone"])
def test_guided_and_plain_scores(golden, family, scale):
    """The published estimate in a few lines: no batch, no padding, every logit."""
    bundle = sj.load(golden / family)
    mask_id, context, text = bundle.config.mask_token_id, np.arange(1, 22), np.arange(40, 59)
    expected = []
    for mask in draw_masks(len(text), 6, seed=5):
        noisy = np.where(mask, mask_id, text)
        logits = np.asarray(sj.forward(bundle, np.concatenate([context, noisy])).logits[0, len(context) :])
        if scale:
            hidden = np.full(len(context), mask_id)
            bare = np.asarray(sj.forward(bundle, np.concatenate([hidden, noisy])).logits[0, len(context) :])
            logits = bare + (scale + 1) * (logits - bare)
        expected.append(log_softmax(logits)[mask, text[mask]].sum() * len(text) / mask.sum())
    found = sj.log_likelihood(bundle, context.tolist(), text.tolist(), samples=6, seed=5, cfg_scale=scale)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_guidance_without_a_context_changes_nothing(bundle):
    text = list(range(30, 50))
    plain = sj.log_likelihood(bundle, [], text, samples=8)
    assert sj.log_likelihood(bundle, [], text, samples=8, cfg_scale=2.0) == pytest.approx(plain, rel=1e-6)


def test_likelihood_depends_on_the_seed_alone(bundle):
    arguments = (bundle, list(range(1, 10)), list(range(30, 60)))
    first = sj.log_likelihood(*arguments, samples=24, seed=1, batch_size=16)
    assert sj.log_likelihood(*arguments, samples=24, seed=1, batch_size=5) == pytest.approx(first, abs=1e-3)
    assert sj.log_likelihood(*arguments, samples=24, seed=2, batch_size=16) != first
    assert first < 0


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_several_pairs_have_the_scores_of_each_one(golden, scale):
    """Contexts and continuations of many lengths, some empty, in any order and any batch."""
    bundle, random = sj.load(golden / "backbone"), np.random.default_rng(3)
    sizes = ((5, 3), (0, 20), (30, 1), (16, 0), (10, 16), (22, 9), (1, 1), (5, 3), (0, 0))
    pairs = [tuple(random.integers(0, 290, size).tolist() for size in pair) for pair in sizes]
    settings: dict[str, Any] = {"samples": 5, "seed": 4, "cfg_scale": scale, "batch_size": 7}
    found = sj.log_likelihoods(bundle, pairs, **settings)
    np.testing.assert_allclose(found, [sj.log_likelihood(bundle, *pair, **settings) for pair in pairs], rtol=1e-5)
    np.testing.assert_allclose(found, sj.log_likelihoods(bundle, pairs[::-1], **settings)[::-1], rtol=1e-5)
    assert [i for i, value in enumerate(found) if value == 0.0] == [3, 8]
    assert sj.log_likelihoods(bundle, []) == []


def test_few_programs_serve_all_lengths(golden):
    """After a few lengths, with continuations of every power of two, the other lengths need no new program."""
    bundle = sj.load(golden / "backbone")

    def score(lengths: Iterable[int]) -> None:
        pairs = [([7] * (length // 2), [9] * (length - length // 2)) for length in lengths]
        sj.log_likelihoods(bundle, pairs, samples=1, batch_size=8)

    score((1, 3, 7, 15, 31, 48))
    with jax.no_tracing():
        score(range(1, 49))


def test_masks_are_spread_over_all_counts():
    masks = draw_masks(10, 40, seed=3)
    counts = masks.sum(axis=1)
    assert sorted(counts.tolist()) == sorted(list(range(1, 11)) * 4)
    assert 0.4 < masks.mean() < 0.7


def test_every_count_and_every_token_is_equally_likely():
    """Over seeds, for each sample: its count is uniform, and each token is masked as often as any other."""
    drawn = np.stack([draw_masks(5, 3, seed) for seed in range(400)])
    counts = drawn.sum(axis=2)
    for sample in range(3):
        shares = np.bincount(counts[:, sample], minlength=6)[1:] / 400
        np.testing.assert_allclose(shares, 0.2, atol=0.08)
        np.testing.assert_allclose(drawn[:, sample].mean(axis=0), 0.6, atol=0.1)


def test_empty_and_too_long_texts(bundle):
    assert sj.log_likelihood(bundle, [1, 2], []) == 0.0
    for arguments, words in (
        (([1] * 200, [2] * 100), "context of 256"),
        (([1], [300]), "outside the vocabulary"),
    ):
        with pytest.raises(sj.UserError, match=words):
            sj.log_likelihood(bundle, *arguments)
    options: tuple[dict[str, Any], ...] = (
        {"samples": 0},
        {"batch_size": 0},
        {"cfg_scale": -1.0},
        {"cfg_scale": float("nan")},
    )
    for option in options:
        with pytest.raises(sj.UserError, match=next(iter(option))):
            sj.log_likelihood(bundle, [1], [2], **option)


def test_text_is_split_at_the_seam():
    """Spaces at the end of the context go to the continuation, and both are encoded together."""

    class Letters:
        prefix = ()

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

    class Bundle:
        tokenizer = Letters()

    before, after = split(Bundle(), "ab  ", "c")  # type: ignore[arg-type]
    assert bytes(before) == b"ab"
    assert bytes(after) == b"  c"
    assert split(Bundle(), "", "c") == ([], [ord("c")])  # type: ignore[arg-type]


class Merging:
    """A tokenizer with the merged pieces "unit" and "unittest", else letters."""

    prefix = ()

    def encode(self, text: str) -> list[int]:
        found = []
        while text:
            piece = next((piece for piece in ("unittest", "unit") if text.startswith(piece)), text[0])
            found.append({"unittest": 256, "unit": 257}.get(piece) or ord(piece))
            text = text[len(piece) :]
        return found


def test_a_token_that_spans_the_seam_is_scored():
    bundle: Any = SimpleNamespace(tokenizer=Merging())
    assert split(bundle, "a unit", "test") == ([ord("a"), ord(" ")], [256])
    assert split(bundle, "a unit", "x") == ([ord("a"), ord(" "), 257], [ord("x")])
    assert split(bundle, "a unit", "") == ([ord("a"), ord(" "), 257], [])
    assert split(bundle, "a unit", "test!", boundary="published") == ([ord("a"), ord(" "), 256], [ord("!")])
    with pytest.raises(sj.UserError, match="no token of its own after 'a unit'"):
        split(bundle, "a unit", "test", boundary="published")
    with pytest.raises(sj.UserError, match="boundary is 'exact'"):
        split(bundle, "a", "b", boundary="exact")  # type: ignore[arg-type]


def test_a_merged_continuation_is_no_certainty():
    """With the bundled vocabulary, where "unittest" is one token and "unit" two: its log-probability, and not 0."""
    bundle = sj.load()
    encode = bundle.tokenizer.encode
    assert len(encode("unittest")) < len(encode("unit"))
    found = sj.log_likelihood(bundle, "unit", "test", samples=4)
    assert found == pytest.approx(sj.log_likelihood(bundle, [], encode("unittest"), samples=4), abs=1e-4)
    assert found < -1


def steered_log_softmax(bundle, canvas, context, plan, written, scale) -> np.ndarray:
    """Log-probabilities (T, V) of a canvas under a plan: the pass with its edits, its clamps, and its suppression."""
    config = bundle.config

    def logits(ids):
        edits = edits_of_canvases(
            ids[None], context, config.mask_token_id, *(t[None] for t in plan.tables(written, config.n_layers))
        )
        clamps = {} if plan.clamps is None else plan.clamps.known
        after = np.arange(len(ids)) >= context
        result = sj.forward(bundle, ids, edits=edits, intervene_known=clamps, positions=after, epsilon="frozen")
        return np.asarray(result.logits[0])

    found = logits(canvas)
    if scale:
        bare = logits(np.where(np.arange(len(canvas)) < context, config.mask_token_id, canvas))
        found = bare + (scale + 1) * (found - bare)
    return log_softmax(found - np.asarray(plan.suppression))


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize(
    "steering",
    [
        sj.SteeringConfig(concept_ids=(3,), mai_lm_target=2.0, inject_layer=1),
        sj.SteeringConfig.injection(3, mai_lm_target=3.0, cutoff_tokens=4),
        sj.SteeringConfig(concept_ids=(1, 2), mai_lm_target=2.0, where="prompt", inject_layer=1),
        sj.suppress(5, 4.0),
        sj.clamp(4, 1.0, epsilon="frozen"),
    ],
    ids=["masks", "cutoff", "prompt", "suppress", "clamp"],
)
def test_under_steering(bundle, steering, scale):
    """The published estimate with every part of a plan, one masking at a time."""
    context, text = np.arange(1, 12), np.arange(40, 47)
    plan, mask_id = plan_steering(bundle, steering), bundle.config.mask_token_id
    expected = []
    for mask in draw_masks(len(text), 5, seed=2):
        canvas = np.concatenate([context, np.where(mask, mask_id, text)])
        logs = steered_log_softmax(bundle, canvas, len(context), plan, int((~mask).sum()), scale)[len(context) :]
        expected.append(logs[mask, text[mask]].sum() * len(text) / mask.sum())
    settings: dict[str, Any] = {"samples": 5, "seed": 2, "cfg_scale": scale, "batch_size": 3}
    found = sj.log_likelihood(bundle, context.tolist(), text.tolist(), steering=steering, **settings)
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
    assert found != pytest.approx(sj.log_likelihood(bundle, context.tolist(), text.tolist(), **settings), rel=1e-3)

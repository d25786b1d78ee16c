"""`sj.embed` and `sj.log_likelihood`."""

from __future__ import annotations

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.likelihood import draw_masks


@pytest.fixture(scope="module")
def bundle(golden):
    return sj.load(golden / "no_epsilon")


def test_embeddings_are_the_decomposition(bundle):
    ids = [5, 9, 40, 3]
    parts = sj.forward(bundle, ids).decomposition
    for kind, field in (("hidden", "hidden"), ("composed", "composed"), ("known", "known_features"),
                        ("discovered", "unk_hat")):  # fmt: skip
        rows = sj.embed(bundle, ids, kind, pooling="none")
        np.testing.assert_allclose(rows, getattr(parts, field)[0], atol=1e-5)
        np.testing.assert_allclose(sj.embed(bundle, ids, kind), rows.mean(axis=0), atol=1e-6)
        np.testing.assert_array_equal(sj.embed(bundle, ids, kind, pooling="last"), rows[-1])
        np.testing.assert_array_equal(sj.embed(bundle, ids, kind, pooling="first"), rows[0])


def test_embedding_without_a_discovered_head(golden):
    """The published stand-in: what is not known."""
    bundle = sj.load(golden / "known_only")
    parts = sj.forward(bundle, [5, 9, 40, 3]).decomposition
    rows = sj.embed(bundle, [5, 9, 40, 3], "discovered", pooling="none")
    np.testing.assert_allclose(rows, parts.hidden[0] - parts.known_features[0], atol=1e-5)


def test_embedding_mistakes(bundle, golden):
    for arguments, words in (
        ({"text_or_ids": ""}, "empty"),
        ({"text_or_ids": []}, "empty"),
        ({"text_or_ids": [300]}, "outside the vocabulary"),
        ({"text_or_ids": [1], "kind": "unknown"}, "kind"),
        ({"text_or_ids": [1], "pooling": "max"}, "pooling"),
    ):
        with pytest.raises(sj.UserError, match=words):
            sj.embed(bundle, **arguments)
    with pytest.raises(sj.UserError, match="needs a model with concepts"):
        sj.embed(sj.load(golden / "backbone"), [1], "known")


@pytest.mark.parametrize("family", ["base", "no_epsilon"])
def test_one_token_has_one_masking(golden, family):
    """For one token the bound is its exact log-probability behind the mask, whatever the samples."""
    bundle = sj.load(golden / family)
    context = list(range(1, 20))
    logits = np.asarray(sj.forward(bundle, [*context, bundle.config.mask_token_id]).logits[0, -1], np.float64)
    expected = logits[7] - np.log(np.exp(logits).sum())
    assert sj.log_likelihood(bundle, context, [7], samples=3) == pytest.approx(expected, abs=1e-4)


def test_the_estimate_is_the_average_over_maskings(bundle):
    """Enumerated for two tokens: both masked (weight 1 each), or one of them (weight 2), counts equally likely."""
    context, pair, mask = list(range(1, 18)), [7, 12], bundle.config.mask_token_id

    def log_p(canvas, at, token):
        logits = np.asarray(sj.forward(bundle, context + canvas).logits[0, len(context) + at], np.float64)
        return logits[token] - np.log(np.exp(logits).sum())

    both = log_p([mask, mask], 0, 7) + log_p([mask, mask], 1, 12)
    single = (2 * log_p([mask, 12], 0, 7) + 2 * log_p([7, mask], 1, 12)) / 2
    masks = draw_masks(2, 400, seed=0)
    first = masks[masks.sum(axis=1) == 1][:, 0].mean()
    drawn = (both + 2 * (first * log_p([mask, 12], 0, 7) + (1 - first) * log_p([7, mask], 1, 12))) / 2
    found = sj.log_likelihood(bundle, context, pair, samples=400, seed=0)
    assert found == pytest.approx(drawn, abs=1e-3)
    assert found == pytest.approx((both + single) / 2, rel=0.05)


def test_likelihood_depends_on_the_seed_alone(bundle):
    arguments = (bundle, list(range(1, 10)), list(range(30, 60)))
    first = sj.log_likelihood(*arguments, samples=24, seed=1, batch_size=16)
    assert sj.log_likelihood(*arguments, samples=24, seed=1, batch_size=5) == pytest.approx(first, abs=1e-3)
    assert sj.log_likelihood(*arguments, samples=24, seed=2, batch_size=16) != first
    assert first < 0


def test_masks_are_spread_over_all_counts():
    masks = draw_masks(10, 40, seed=3)
    counts = masks.sum(axis=1)
    assert sorted(counts.tolist()) == sorted(list(range(1, 11)) * 4)
    assert 0.4 < masks.mean() < 0.7


def test_likelihood_of_nothing_and_of_too_much(bundle):
    assert sj.log_likelihood(bundle, [1, 2], []) == 0.0
    with pytest.raises(sj.UserError, match="context of 256"):
        sj.log_likelihood(bundle, [1] * 200, [2] * 100)
    with pytest.raises(sj.UserError, match="samples"):
        sj.log_likelihood(bundle, [1], [2], samples=0)
    with pytest.raises(sj.UserError, match="outside the vocabulary"):
        sj.log_likelihood(bundle, [1], [300])


def test_text_is_split_at_the_seam(golden):
    """Spaces at the end of the context go to the continuation, and both are encoded together."""
    from steerling_jax.likelihood import _split

    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

    class Bundle:
        tokenizer = Letters()

    before, after = _split(Bundle(), "ab  ", "c")  # type: ignore[arg-type]
    assert bytes(before) == b"ab"
    assert bytes(after) == b"  c"
    assert _split(Bundle(), "", "c") == ([], [ord("c")])  # type: ignore[arg-type]

"""Noise keyed by content, projected gradients, and how they are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.attribution.index.gradients import gradient_features, passage_losses
from steerling_jax.attribution.index.influence import fit_fisher, influence
from steerling_jax.attribution.index.passage_states import span_hidden
from steerling_jax.attribution.index.passages import Masking, Passage, draw_masks, passage_batches, truncate_passage
from steerling_jax.attribution.index.projection import FeatureBlock, Projection, feature_blocks
from steerling_jax.attribution.index.signatures import (
    compute_signatures,
    concept_count,
    dequantise,
    quantise,
    row_scores,
    signature_scores,
)
from steerling_jax.errors import UserError
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.published_shapes import fused


@pytest.fixture(scope="module")
def bundle(golden: Path) -> sj.Bundle:
    return sj.load(golden / "base")


@pytest.fixture(scope="module")
def passages(bundle: sj.Bundle) -> list[Passage]:
    draw = np.random.default_rng(0)
    sizes = [(20, 0), (30, 11), (17, 3), (40, 30)]
    return [Passage(draw.integers(0, bundle.config.vocab_size - 6, n).astype(np.int32), a, n) for n, a in sizes]


def arguments(bundle: sj.Bundle) -> dict:
    return {"config": bundle.config, "compute": bundle.compute}


def test_masks_depend_on_the_tokens_alone():
    tokens = np.arange(40)
    first, second = draw_masks(tokens, Masking())
    assert (first ^ second).all()  # complementary: every position is masked once
    assert (draw_masks(tokens.astype(np.uint16), Masking()) == [first, second]).all()
    assert (draw_masks(tokens[::-1], Masking())[0] != first).any()
    assert (draw_masks(tokens, Masking(seed=1))[0] != first).any()
    assert (draw_masks(tokens, Masking(0.5, 4)).sum(axis=0) == 2).all()


@pytest.mark.parametrize(("level", "draws"), [(0.0, 2), (1.5, 1), (0.3, 2), (float("nan"), 2)])
def test_masking_that_could_leave_tokens_unmasked_is_rejected(level: float, draws: int):
    with pytest.raises(UserError):
        Masking(level, draws)


def test_truncation_removes_context_before_the_span():
    tokens = np.arange(100)
    assert truncate_passage(Passage(tokens, 60, 90), 40)[1:] == (10, 40)
    assert truncate_passage(Passage(tokens, 60, 90), 40).tokens.tolist() == list(range(50, 90))
    assert truncate_passage(Passage(tokens, 60, 90), 20).tokens.tolist() == list(range(60, 80))


def test_an_empty_span_is_rejected(bundle: sj.Bundle):
    with pytest.raises(UserError, match="is not a span"):
        list(passage_batches([Passage(np.arange(5), 3, 3)], bundle.config, Masking(), 2))


def test_each_token_counts_once(bundle: sj.Bundle, passages: list[Passage]):
    for masking in (Masking(), Masking(0.7, 3)):
        for numbers, batch in passage_batches(passages, bundle.config, masking, 3):
            total = np.asarray(batch.weight).sum(axis=1)
            spans = [passages[n].end - passages[n].start for n in numbers]
            assert np.allclose(total, spans + [0] * (3 - len(spans)))


@pytest.mark.parametrize("masking", [Masking(), Masking(0.5, 4), Masking(0.7, 3)])
def test_a_window_of_noise_gives_the_states_of_the_whole_noisy_copy(bundle: sj.Bundle, masking: Masking):
    """Other noisy blocks are not run, yet the states equal those of the whole noisy copy, for each draw."""
    passage = Passage(np.random.default_rng(3).integers(0, 200, 120).astype(np.int32), 85, 110)
    ((_, batch),) = passage_batches([passage], bundle.config, masking, 1)
    assert batch.noisy.shape[2] < batch.clean.shape[1]
    tokens = np.full(batch.clean.shape[1], bundle.config.mask_token_id, np.int32)
    tokens[: passage.end] = passage.tokens[: passage.end]
    masked = np.ones((masking.draws, len(tokens)), bool)
    for start, end in ((0, passage.start), (passage.start, passage.end)):
        masked[:, start:end] = draw_masks(passage.tokens[start:end], masking)
    noisy = np.where(masked, bundle.config.mask_token_id, tokens)
    clean = np.tile(tokens, (masking.draws, 1))
    whole = denoise(bundle.params, jnp.asarray(clean), jnp.asarray(noisy), clean_context=True, **arguments(bundle))
    found = span_hidden(bundle.params, batch, bundle.config, bundle.compute)[0]
    expected = np.asarray(whole)[:, passage.start : passage.end][masked[:, passage.start : passage.end]]
    assert len(expected) == int((batch.weight[0] > 0).sum())
    np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-5)


def test_whole_gradients_are_those_of_the_loss(bundle: sj.Bundle, passages: list[Passage]):
    """A small step against one passage's gradient changes another passage's loss as influence predicts."""
    whole = gradient_features(bundle.params, passages[:2], projection=Projection(None), **arguments(bundle))
    published = jax.eval_shape(fused, bundle.params)
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(published) if "_head" not in str(path[0])]
    parts = iter(np.split(whole[0], np.cumsum([leaf.size for leaf in leaves])[:-1]))
    gradient = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros(leaf.shape) if "_head" in str(path[0]) else next(parts).reshape(leaf.shape),
        published,
    )
    (gradient,) = jax.linear_transpose(fused, bundle.params)(gradient)  # to the shapes of this implementation
    size = 1e-3 / np.linalg.norm(whole[0])
    losses = []
    for sign in (1, -1):
        moved = jax.tree.map(lambda leaf, slope, sign=sign: leaf - sign * size * slope, bundle.params, gradient)
        losses.append(passage_losses(moved, passages[:2], **arguments(bundle)))
    change = (losses[0] - losses[1]) / (2 * size)
    expected = -influence(whole, whole, "dot")[0]
    np.testing.assert_allclose(change, expected, rtol=0.05, atol=0.02 * abs(expected[0]))


def test_projections_preserve_inner_products(bundle: sj.Bundle, passages: list[Passage]):
    draws = [Passage(passages[0].tokens, 0, n) for n in (12, 16, 20)]
    whole = gradient_features(bundle.params, draws, projection=Projection(None), **arguments(bundle))
    exact = influence(whole, whole)
    for seed in (0, 1):
        projection = Projection(24, seed)
        small = gradient_features(bundle.params, draws, projection=projection, **arguments(bundle))
        assert small.shape[1] == feature_blocks(bundle.config, projection)[-1].end < whole.shape[1]
        np.testing.assert_allclose(influence(small, small), exact, atol=0.12)


def test_results_do_not_depend_on_the_batch(bundle: sj.Bundle, passages: list[Passage]):
    together = gradient_features(bundle.params, passages, batch_size=3, **arguments(bundle))
    alone = np.concatenate([gradient_features(bundle.params, [one], **arguments(bundle)) for one in passages])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
    alone_rows = compute_signatures(bundle.params, passages[:1], masking=Masking(), **arguments(bundle))
    batched = compute_signatures(bundle.params, passages, masking=Masking(), **arguments(bundle))
    np.testing.assert_allclose(alone_rows.rows[0], batched.rows[0], atol=1e-5)


def test_fisher_is_the_damped_inverse():
    draw = np.random.default_rng(0)
    features = draw.standard_normal((50, 6)).astype(np.float32)
    blocks = [FeatureBlock("first", 0, 2), FeatureBlock("second", 2, 6)]
    fisher = fit_fisher(features, blocks, damping=0.5)
    for start, end in ((0, 2), (2, 6)):
        part = features[:, start:end].astype(np.float64)
        moment = part.T @ part / 50
        inverse = np.linalg.inv(moment + 0.5 * np.trace(moment) / (end - start) * np.eye(end - start))
        white = fisher.whiten(features[:3])[:, start:end]
        np.testing.assert_allclose(white @ white.T, features[:3, start:end] @ inverse @ features[:3, start:end].T, 1e-3)
    same = influence(features[:3], features[:3], "fisher", fisher)
    np.testing.assert_allclose(np.diag(same), 1, rtol=1e-5)


def test_signatures_are_unit_vectors_of_concepts(bundle: sj.Bundle, passages: list[Passage]):
    found = compute_signatures(bundle.params, passages, masking=Masking(), **arguments(bundle))
    assert found.ids.max() < concept_count(bundle.config)
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1, rtol=1e-5)
    own = signature_scores(found, found, concept_count(bundle.config))
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-5)
    assert (own <= 1 + 1e-5).all()
    assert np.allclose(row_scores(found.rows, found.rows), found.rows @ found.rows.T)
    # Eight bits store the square root with a step of 1/255.
    stored = dequantise(quantise(found.values))
    assert np.abs(np.sqrt(stored) - np.sqrt(found.values)).max() <= 0.5 / 255 + 1e-6


def test_a_bare_backbone_has_hidden_rows_and_no_signature(golden: Path):
    bundle = sj.load(golden / "backbone")
    found = compute_signatures(bundle.params, [Passage(np.arange(12), 2, 12)], masking=Masking(), **arguments(bundle))
    assert found.ids.shape == (1, 0)
    assert np.isfinite(found.rows).all()


def test_nan_weights_are_rejected(bundle: sj.Bundle, passages: list[Passage]):
    bad = {**bundle.params, "ln_f": {"weight": jnp.full_like(bundle.params["ln_f"]["weight"], jnp.nan)}}
    with pytest.raises(UserError, match="NaN"):
        compute_signatures(bad, passages[:1], masking=Masking(), **arguments(replace(bundle, params=bad)))
    with pytest.raises(UserError, match="NaN"):
        gradient_features(bad, passages[:1], **arguments(bundle))

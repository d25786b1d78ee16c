"""Noise keyed by content, projected gradients, and how they are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.attribution.index.influence import (
    Projection,
    feature_blocks,
    fit_fisher,
    gradient_features,
    influence,
    passage_losses,
    span_hidden,
)
from steerling_jax.attribution.index.passages import Masking, Passage, draw_masks, fitted, passage_batches
from steerling_jax.attribution.index.signatures import (
    concept_count,
    describe,
    packed,
    row_scores,
    signature_scores,
    unpacked,
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


def test_masks_depend_on_the_content_alone():
    tokens = np.arange(40)
    first, second = draw_masks(tokens, Masking())
    assert (first ^ second).all()  # complementary: every position is masked once
    assert (draw_masks(tokens.astype(np.uint16), Masking()) == [first, second]).all()
    assert (draw_masks(tokens[::-1], Masking())[0] != first).any()
    assert (draw_masks(tokens, Masking(seed=1))[0] != first).any()
    assert (draw_masks(tokens, Masking(0.5, 4)).sum(axis=0) == 2).all()


@pytest.mark.parametrize(("level", "draws"), [(0.0, 2), (1.5, 1), (0.3, 2), (float("nan"), 2)])
def test_noise_that_leaves_tokens_out_is_refused(level: float, draws: int):
    with pytest.raises(UserError):
        Masking(level, draws)


def test_a_passage_loses_context_before_its_own_tokens():
    tokens = np.arange(100)
    assert fitted(Passage(tokens, 60, 90), 40)[1:] == (10, 40)
    assert fitted(Passage(tokens, 60, 90), 40).tokens.tolist() == list(range(50, 90))
    assert fitted(Passage(tokens, 60, 90), 20).tokens.tolist() == list(range(60, 80))


def test_an_empty_span_is_refused(bundle: sj.Bundle):
    with pytest.raises(UserError, match="no span"):
        list(passage_batches([Passage(np.arange(5), 3, 3)], bundle.config, Masking(), 2))


def test_each_token_counts_once(bundle: sj.Bundle, passages: list[Passage]):
    for masking in (Masking(), Masking(0.7, 3)):
        for numbers, batch in passage_batches(passages, bundle.config, masking, 3):
            total = np.asarray(batch.weight).sum(axis=1)
            spans = [passages[n].end - passages[n].start for n in numbers]
            assert np.allclose(total, spans + [0] * (3 - len(spans)))


@pytest.mark.parametrize("masking", [Masking(), Masking(0.5, 4), Masking(0.7, 3)])
def test_a_window_of_noise_is_enough(bundle: sj.Bundle, masking: Masking):
    """Rows are those of the whole text's noisy copy, one draw at a time, though other noisy blocks are not run."""
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
    """A small step against the gradient of one passage changes another's loss by what influence says."""
    whole = gradient_features(bundle.params, passages[:2], projection=Projection(None), **arguments(bundle))
    published = jax.eval_shape(fused, bundle.params)
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(published) if "_head" not in str(path[0])]
    parts = iter(np.split(whole[0], np.cumsum([leaf.size for leaf in leaves])[:-1]))
    gradient = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros(leaf.shape) if "_head" in str(path[0]) else next(parts).reshape(leaf.shape),
        published,
    )
    (gradient,) = jax.linear_transpose(fused, bundle.params)(gradient)  # back to our shapes
    size = 1e-3 / np.linalg.norm(whole[0])
    losses = []
    for sign in (1, -1):
        moved = jax.tree.map(lambda leaf, slope, sign=sign: leaf - sign * size * slope, bundle.params, gradient)
        losses.append(passage_losses(moved, passages[:2], **arguments(bundle)))
    change = (losses[0] - losses[1]) / (2 * size)
    expected = -influence(whole, whole, "dot")[0]
    np.testing.assert_allclose(change, expected, rtol=0.05, atol=0.02 * abs(expected[0]))


def test_projections_keep_inner_products(bundle: sj.Bundle, passages: list[Passage]):
    draws = [Passage(passages[0].tokens, 0, n) for n in (12, 16, 20)]
    whole = gradient_features(bundle.params, draws, projection=Projection(None), **arguments(bundle))
    exact = influence(whole, whole)
    for seed in (0, 1):
        projection = Projection(24, seed)
        small = gradient_features(bundle.params, draws, projection=projection, **arguments(bundle))
        assert small.shape[1] == feature_blocks(bundle.config, projection)[-1].end < whole.shape[1]
        np.testing.assert_allclose(influence(small, small), exact, atol=0.12)


def test_batches_change_nothing(bundle: sj.Bundle, passages: list[Passage]):
    together = gradient_features(bundle.params, passages, batch_size=3, **arguments(bundle))
    alone = np.concatenate([gradient_features(bundle.params, [one], **arguments(bundle)) for one in passages])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
    apart = describe(bundle.params, passages[:1], masking=Masking(), **arguments(bundle))
    all_of_them = describe(bundle.params, passages, masking=Masking(), **arguments(bundle))
    np.testing.assert_allclose(apart.rows[0], all_of_them.rows[0], atol=1e-5)


def test_fisher_is_the_damped_inverse():
    draw = np.random.default_rng(0)
    features = draw.standard_normal((50, 6)).astype(np.float32)
    blocks = [b._replace(end=e) for b, e in zip(feature_blocks_of((0, 2), (2, 6)), (2, 6))]
    fisher = fit_fisher(features, blocks, damping=0.5)
    for start, end in ((0, 2), (2, 6)):
        part = features[:, start:end].astype(np.float64)
        moment = part.T @ part / 50
        inverse = np.linalg.inv(moment + 0.5 * np.trace(moment) / (end - start) * np.eye(end - start))
        white = fisher.whiten(features[:3])[:, start:end]
        np.testing.assert_allclose(white @ white.T, features[:3, start:end] @ inverse @ features[:3, start:end].T, 1e-3)
    same = influence(features[:3], features[:3], "fisher", fisher)
    np.testing.assert_allclose(np.diag(same), 1, rtol=1e-5)


def feature_blocks_of(*ends: tuple[int, int]):
    from steerling_jax.attribution.index.influence import FeatureBlock

    return [FeatureBlock(f"block {start}", start, end) for start, end in ends]


def test_signatures_are_what_the_heads_give(bundle: sj.Bundle, passages: list[Passage]):
    found = describe(bundle.params, passages, masking=Masking(), **arguments(bundle))
    assert found.ids.max() < concept_count(bundle.config)
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1, rtol=1e-5)
    own = signature_scores(found, found, concept_count(bundle.config))
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-5)
    assert (own <= 1 + 1e-5).all()
    assert np.allclose(row_scores(found.rows, found.rows), found.rows @ found.rows.T)
    # Eight bits keep a value to 1/255 of its root.
    kept = unpacked(packed(found.values))
    assert np.abs(np.sqrt(kept) - np.sqrt(found.values)).max() <= 0.5 / 255 + 1e-6


def test_a_bare_backbone_has_rows_and_no_signature(golden: Path):
    bundle = sj.load(golden / "backbone")
    found = describe(bundle.params, [Passage(np.arange(12), 2, 12)], masking=Masking(), **arguments(bundle))
    assert found.ids.shape == (1, 0)
    assert np.isfinite(found.rows).all()


def test_weights_that_are_no_numbers_are_told(bundle: sj.Bundle, passages: list[Passage]):
    bad = {**bundle.params, "ln_f": {"weight": jnp.full_like(bundle.params["ln_f"]["weight"], jnp.nan)}}
    with pytest.raises(UserError, match="NaN"):
        describe(bad, passages[:1], masking=Masking(), **arguments(replace(bundle, params=bad)))
    with pytest.raises(UserError, match="NaN"):
        gradient_features(bad, passages[:1], **arguments(bundle))

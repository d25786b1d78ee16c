"""The objective of pre-training: each loss against a plain version, and which parameters get a gradient from it."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.attention import attend
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.head_view import known_spec, view_head
from steerling_jax.models.steerling.model import init_params
from steerling_jax.models.two_copy_attention import attend_two_copies
from steerling_jax.objectives.concept_losses import (
    independence_loss,
    label_features,
    log1m_exp,
    presence_loss,
    residual_loss,
)
from steerling_jax.objectives.noise import NoiseConfig, mask_tokens, noise_levels
from steerling_jax.objectives.pretraining import ObjectiveConfig, loss_fn
from steerling_jax.objectives.rows import MaskedRows, gather_rows
from tests.worlds.attention_masks import two_copy_mask

CONFIG = ModelConfig(
    n_layers=2,
    n_head=2,
    n_embd=32,
    n_kv_heads=1,
    block_size=64,
    diff_block_size=8,
    intermediate_size=48,
    vocab_size=50,
    pad_token_id=46,
    bos_token_id=47,
    eos_token_id=45,
    endofchunk_token_id=48,
    mask_token_id=49,
    concept=ConceptConfig(
        n_concepts=10,
        n_unknown_concepts=20,
        concept_dim=32,
        topk_known=4,
        topk_known_features=4,
        unknown_topk=5,
        factorize_rank=16,
    ),
)
KEY = jax.random.key(0)


def batch(sequences: int = 2, length: int = 32) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    index = np.tile(np.arange(length) // 11, (sequences, 1))  # chunks of 11, cut by the blocks of 8
    index[:, ::13] = -1
    return {
        "tokens": jnp.asarray(random.integers(0, 45, (sequences, length)), jnp.int32),
        "chunk_index": jnp.asarray(index, jnp.int32),
        "chunk_labels": jnp.asarray(random.integers(-1, 10, (sequences, 3, 4)), jnp.int32),
    }


def gradients(objective: ObjectiveConfig, compute: Compute | None = None):
    def loss(params):
        return loss_fn(
            params, batch(), KEY, jnp.float32(0.5), config=CONFIG, compute=compute or Compute(), objective=objective
        )

    return jax.jit(jax.grad(loss, has_aux=True))(init_params(CONFIG, KEY))


DIFFUSION_ALONE = ObjectiveConfig(concept_weight=0.0, residual_weight=0.0, independence_weight=0.0)


def test_without_dropping_epsilon_concepts_get_no_gradient() -> None:
    grads, _ = gradients(dataclasses.replace(DIFFUSION_ALONE, epsilon_dropout=(0.0, 0.0)))
    for head in ("known_head", "unknown_head"):
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[head]))
        assert largest == 0.0, f"{head}: composed equals hidden, so diffusion cannot train it"


def test_dropping_epsilon_trains_both_heads() -> None:
    free = dataclasses.replace(
        DIFFUSION_ALONE, epsilon_dropout=(1.0, 1.0), known_forcing=(0.0, 0.0), unknown_forcing=(0.0, 0.0)
    )
    grads, _ = gradients(free)
    for head in ("known_head", "unknown_head"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads[head]):
            assert float(jnp.abs(leaf).max()) > 0.0, f"{head}{jax.tree_util.keystr(path)}"


def test_residual_trains_the_discovered_head_only() -> None:
    only = ObjectiveConfig(concept_weight=0.0, residual_weight=1.0, independence_weight=0.0, epsilon_dropout=(0.0, 0.0))
    with_residual, _ = gradients(only)
    without, _ = gradients(dataclasses.replace(only, residual_weight=0.0))
    assert float(jnp.abs(with_residual["unknown_head"]["predictor_up"]["weight"]).max()) > 0
    for name in ("blocks", "tok_emb", "known_head", "ln_f"):
        chex.assert_trees_all_close(with_residual[name], without[name], atol=1e-7)


def test_losses_are_finite_and_reported() -> None:
    grads, metrics = gradients(ObjectiveConfig(noise=NoiseConfig(clean_context=True), rows=0.9))
    assert {"loss", "diffusion", "bound", "presence", "residual", "independence", "rows_dropped"} <= set(metrics)
    chex.assert_tree_all_finite((grads, metrics))


def test_low_precision_operands_stay_close() -> None:
    objective = ObjectiveConfig(noise=NoiseConfig(clean_context=True))
    _, exact = gradients(objective)
    _, rough = gradients(objective, Compute(matmul_dtype="bfloat16"))
    assert float(rough["diffusion"]) == pytest.approx(float(exact["diffusion"]), rel=0.01)


def rows_and_labels(block: int = 4096):
    hidden = jax.random.normal(KEY, (2, 32, 32))
    levels = jnp.full((2, 4), 0.5)
    masked = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 32))
    rows = gather_rows(hidden, batch(), levels, masked, 8, 1.0)
    assert CONFIG.concept is not None
    spec = dataclasses.replace(known_spec(CONFIG.concept), block=block)
    view = view_head(init_params(CONFIG, KEY)["known_head"], spec, Compute(), rows.hidden)
    return rows, batch()["chunk_labels"], view, masked


@pytest.mark.parametrize("block", [4096, 3])
def test_presence_loss_is_the_plain_product(block: int) -> None:
    rows, labels, view, _ = rows_and_labels(block)
    activation = np.asarray(jax.nn.sigmoid(bn.dense_logits(view)), np.float64)
    chunk, valid = np.asarray(rows.chunk), np.asarray(rows.valid)
    chunk = np.where(chunk >= 0, chunk + 3 * (np.arange(64) // 32), -1)
    nats = []
    for number, label in enumerate(np.asarray(labels).reshape(-1, 4)):
        inside = (chunk == number) & (valid > 0)
        if inside.any():
            present = 1 - np.prod(1 - activation[inside], axis=0)
            truth = np.isin(np.arange(10), label)
            nats.append(-np.where(truth, np.log(present), np.log1p(-present)).sum())
    found = presence_loss(view, rows, labels, block, "float32")
    assert float(found) == pytest.approx(float(np.mean(nats)), rel=1e-4)


def test_rows_are_the_masked_positions_in_order() -> None:
    rows, _, _, masked = rows_and_labels()
    np.testing.assert_array_equal(rows.target[rows.valid > 0], np.asarray(batch()["tokens"])[np.asarray(masked)])
    assert float(rows.valid.sum()) == int(masked.sum())


def test_rows_have_room_for_a_share_of_the_positions() -> None:
    masked = jnp.ones((2, 32), bool)
    rows = gather_rows(jnp.zeros((2, 32, 4)), batch(), jnp.ones((2, 4)), masked, 8, 0.5)
    assert rows.hidden.shape == (32, 4)
    np.testing.assert_array_equal(rows.position, np.tile(np.arange(16), (2, 1)))


def test_log1m_exp_has_finite_gradients_everywhere() -> None:
    s = jnp.asarray([0.0, -1e-12, -1e-6, -0.5, -0.7, -5.0, -80.0, -1e4])
    chex.assert_tree_all_finite((jax.vmap(log1m_exp)(s), jax.vmap(jax.grad(log1m_exp))(s)))
    np.testing.assert_allclose(log1m_exp(s[3:6]), np.log(1 - np.exp(np.asarray(s[3:6], np.float64))), rtol=1e-5)


def test_independence_is_the_same_in_both_forms() -> None:
    for M, D in ((40, 8), (8, 40)):
        known, discovered = (jax.random.normal(jax.random.key(i), (M, D)) for i in range(2))
        phi, psi = (np.asarray(x - x.mean(0, keepdims=True), np.float64) for x in (known, discovered))
        expected = np.square(psi.T @ phi).sum() / (D**2 * (M - 1))
        assert float(independence_loss(known, discovered, jnp.ones(M))) == pytest.approx(expected, rel=1e-4)


def test_residual_leaves_fillers_out() -> None:
    zero = jnp.zeros(3, jnp.int32)
    rows = MaskedRows(jnp.ones((3, 2)), zero, zero, jnp.ones(3), jnp.asarray([1.0, 1.0, 0.0]), zero)
    discovered = jnp.asarray([[1.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    assert float(residual_loss(discovered, rows, jnp.zeros((3, 2)))) == pytest.approx(0.5)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_noise_levels_cover_their_range(distribution: str) -> None:
    levels = noise_levels(KEY, (16, 8), jnp.float32(0.0), NoiseConfig(distribution=distribution, floor=0.05))  # type: ignore[arg-type]
    assert float(levels.min()) >= 0.05
    assert float(levels.max()) <= 1.0
    assert float(levels.mean()) == pytest.approx(0.5 if distribution == "uniform" else 0.25, abs=0.05)


def test_noise_levels_are_stratified_in_each_sequence_and_over_the_batch() -> None:
    levels = np.asarray(noise_levels(KEY, (4, 8), jnp.float32(0.0), NoiseConfig(floor=1e-9)))
    np.testing.assert_array_equal(np.sort(np.floor(levels * 8), axis=1), np.tile(np.arange(8), (4, 1)))
    np.testing.assert_array_equal(np.sort(np.floor(levels * 32).reshape(-1)), np.arange(32))


def test_label_of_concept_0_counts_beside_unused_ones() -> None:
    _, _, view, _ = rows_and_labels()
    labels = jnp.asarray([[[0, 3, -1, -1]], [[-1, -1, -1, -1]]], jnp.int32)
    found = label_features(view, labels, jnp.asarray([0, -1, 0, 0]), Compute())
    table = np.asarray(view.values)
    np.testing.assert_allclose(found, [table[0] + table[3], np.zeros(32), np.zeros(32), np.zeros(32)], atol=1e-6)


def test_masks_fall_with_the_probability_of_their_block() -> None:
    levels = jnp.asarray([[0.1, 0.9]])
    tokens = jnp.zeros((1, 16), jnp.int32)
    masked = jax.vmap(lambda key: mask_tokens(key, tokens, levels, CONFIG)[1])(jax.random.split(KEY, 2000))
    share = masked.reshape(2000, 2, 8).mean(axis=(0, 2))
    np.testing.assert_allclose(share, [0.1, 0.9], atol=0.02)


def test_two_copy_attention_is_the_masked_one() -> None:
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 48, heads, 8)) for i, heads in enumerate((4, 2, 2)))

    def plain(q, k, v):
        return attend(q, k, v, two_copy_mask(24, 8))

    def fast(q, k, v):
        return attend_two_copies(q, k, v, 8)

    chex.assert_trees_all_close(plain(q, k, v), fast(q, k, v), atol=3e-6)
    slow_grads, fast_grads = (
        jax.grad(lambda *a, f=f: jnp.sum(jnp.square(f(*a))), argnums=(0, 1, 2))(q, k, v) for f in (plain, fast)
    )
    chex.assert_trees_all_close(slow_grads, fast_grads, atol=2e-5)


def test_clean_context_is_what_a_pass_after_clean_blocks_sees() -> None:
    """Block b of the noisy copy equals block b of one canvas whose earlier blocks are clean."""
    params, tokens = init_params(CONFIG, KEY), batch()["tokens"]
    noisy = jnp.where(jax.random.bernoulli(KEY, 0.5, tokens.shape), CONFIG.mask_token_id, tokens)
    run = {"config": CONFIG, "compute": Compute()}
    both = denoise(params, tokens, noisy, clean_context=True, **run)
    for start in (0, 8, 24):
        canvas = jnp.concatenate([tokens[:, :start], noisy[:, start : start + 8]], axis=1)
        alone = denoise(params, tokens, canvas, clean_context=False, **run)
        chex.assert_trees_all_close(both[:, start : start + 8], alone[:, start:], atol=2e-5)

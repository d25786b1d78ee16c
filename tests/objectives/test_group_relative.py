"""The group-relative objective beside numbers computed by hand and a plain loop, for both kinds of models."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.errors import UserError
from steerling_jax.objectives.group_relative import (
    GroupRelativeObjective,
    advantages,
    clipped_losses,
    divergence,
    noisy_completions,
    token_scores,
    token_shares,
)
from steerling_jax.objectives.objective import Draws
from tests.worlds.decoders import GOLDEN_DECODERS

KEY, PROGRESS = jax.random.key(0), jnp.zeros(())


def test_advantages_are_relative_to_the_group():
    # Mean 2 and deviation 1 in the first group; in the others all rewards are equal, 0.1 not exactly representable.
    rewards = np.array([[1.0, 3.0, 1.0, 3.0], [0.1, 0.1, 0.1, 0.1], [5.0, 5.0, 5.0, 5.0]])
    found = np.asarray(advantages(jnp.asarray(rewards)))
    np.testing.assert_allclose(found[0], [-1, 1, -1, 1], rtol=1e-4)
    assert (found[1:] == 0).all()


def test_the_loss_is_a_mean_over_the_tokens_of_a_group_and_then_over_groups():
    weight = jnp.array([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 2, 0, 0]])
    expected = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 2, 0, 0]]) / 4 / 2
    np.testing.assert_allclose(token_shares(weight, 2), expected)
    assert not np.asarray(token_shares(jnp.zeros((2, 3)), 2)).any()


# ratio, advantage → loss and whether it is clipped, for a range of 0.8 to 1.28.
CASES = [
    (1.0, 2.0, -2.0, False),
    (1.2, 1.0, -1.2, False),  # within the range: 1.2 would be clipped by a symmetric 0.2 only above
    (1.25, 1.0, -1.25, False),  # above 1 + low, below 1 + high
    (1.5, 1.0, -1.28, True),
    (0.5, 1.0, -0.5, False),  # it moved against its advantage, and may come back
    (0.5, -1.0, 0.8, True),
    (1.5, -1.0, 1.5, False),
    (0.9, -2.0, 1.8, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "is_clipped"), CASES)
def test_clipping(ratio: float, advantage: float, loss: float, is_clipped: bool):
    def of(new: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, clipped = clipped_losses(
            new, jnp.full((1, 1), -3.0), jnp.full((1, 1), advantage), jnp.ones((1, 1), bool), 0.2, 0.28
        )
        return losses[0, 0], clipped[0, 0]

    new = jnp.full((1, 1), -3.0 + math.log(ratio))
    (found, clipped), gradient = jax.value_and_grad(of, has_aux=True)(new)
    assert float(found) == pytest.approx(loss, rel=1e-5)
    assert bool(clipped) is is_clipped
    # d(−ratio · A) / d log p = −ratio · A, or nothing where it is clipped.
    assert float(gradient[0, 0]) == pytest.approx(0.0 if is_clipped else -ratio * advantage, rel=1e-5)


def test_tokens_that_are_not_counted_change_nothing():
    counted = jnp.array([[True, False]])
    losses = partial(clipped_losses, advantage=jnp.ones((1, 1)), counted=counted, low=0.2, high=0.28)

    def total(new: jax.Array) -> jax.Array:
        return jnp.sum(losses(new, jnp.array([[-1.0, -500.0]]))[0])

    value, gradient = jax.value_and_grad(total)(jnp.array([[-1.0, 500.0]]))
    assert float(value) == -1.0
    np.testing.assert_array_equal(gradient, [[-1.0, 0.0]])


def test_divergence_by_hand():
    new, reference = jnp.array([[-1.0, -2.0, -1.0]]), jnp.array([[-1.0, -1.0, 400.0]])
    found = divergence(new, reference, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(found, [[0.0, math.e - 2, 0.0]], rtol=1e-5)


def decoder_batch(bundle: sj.Bundle, temperature: float) -> dict[str, jax.Array]:
    """Two groups of two rollouts of a prompt of 3 tokens, of unequal lengths, with log-probabilities that are a little
    off the model's own."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 64, (4, 10)).astype(np.int32)
    weight = np.zeros((4, 10), np.float32)
    for row, end in enumerate((9, 6, 7, 9)):
        weight[row, 2:end] = 1
    rows = {"tokens": tokens, "noisy": tokens, "target": np.roll(tokens, -1, axis=1), "weight": weight}
    own, _ = token_scores(bundle.params, rows, bundle.config, bundle.compute, temperature)
    noise = rng.normal(0, 0.4, own.shape)
    extra = {"old": own + noise, "reference": own - noise, "advantage": np.array([1.5, -1.5, 0.7, -0.7], np.float32)}
    return {name: jnp.asarray(value, jnp.asarray(value).dtype) for name, value in (rows | extra).items()}


def test_the_objective_is_that_of_a_plain_loop():
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    objective = GroupRelativeObjective(group_size=2, temperature=0.7, kl_weight=0.3)
    batch = decoder_batch(bundle, 0.7)
    drawn = objective.draw(batch, KEY, PROGRESS, bundle.config)
    loss, metrics = objective.loss(bundle.params, drawn, PROGRESS, config=bundle.config, compute=bundle.compute)

    logits = np.asarray(sj.forward(bundle, np.asarray(batch["tokens"])).logits, np.float64) / 0.7
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = clipped = entropy = kl = 0.0
    for group in (0, 2):
        rows = range(group, group + 2)
        places = [(row, t) for row in rows for t in range(10) if batch["weight"][row, t]]
        for row, t in places:
            new = log_probs[row, t, int(batch["target"][row, t])]
            ratio, A = math.exp(new - float(batch["old"][row, t])), float(batch["advantage"][row])
            limited = min(max(ratio, 0.8), 1.28)
            share = 1 / len(places) / 2
            expected -= share * min(ratio * A, limited * A)
            clipped += share * (limited * A < ratio * A)
            entropy -= share * float((np.exp(log_probs[row, t]) * log_probs[row, t]).sum())
            back = float(batch["reference"][row, t]) - new
            kl += share * (math.exp(back) - 1 - back)
    assert 0 < clipped < 1
    found = [float(value) for value in (loss, metrics["clipped"], metrics["entropy"], metrics["divergence"])]
    np.testing.assert_allclose(found, [expected + 0.3 * kl, clipped, entropy, kl], rtol=2e-4)


def test_a_step_makes_good_rollouts_likelier_and_bad_ones_less():
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    objective = GroupRelativeObjective(group_size=2)
    batch = decoder_batch(bundle, 1.0)
    batch["old"], _ = token_scores(bundle.params, batch, bundle.config, bundle.compute, 1.0)  # on-policy: ratio 1
    drawn = objective.draw(batch, KEY, PROGRESS, bundle.config)
    gradient = jax.grad(
        lambda params: objective.loss(params, drawn, PROGRESS, config=bundle.config, compute=bundle.compute)[0]
    )(bundle.params)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, bundle.params, gradient)
    after, _ = token_scores(moved, batch, bundle.config, bundle.compute, 1.0)
    change = np.asarray(jnp.sum(batch["weight"] * (after - batch["old"]), axis=1))
    assert (np.sign(change) == [1, -1, 1, -1]).all()


def test_micro_batches_add_up_to_the_batch():
    bundle = sj.load(GOLDEN_DECODERS / "qwen3")
    objective = GroupRelativeObjective(group_size=2, kl_weight=0.1)
    drawn = objective.draw(decoder_batch(bundle, 1.0), KEY, PROGRESS, bundle.config)
    loss = partial(objective.loss, bundle.params, progress=PROGRESS, config=bundle.config, compute=bundle.compute)
    parts = drawn.split(2)
    found = [loss(Draws(jax.tree.map(lambda leaf, m=m: leaf[m], parts), drawn.shared)) for m in range(2)]
    for ours, theirs in zip(jax.tree.leaves(jax.tree.map(jnp.add, *found)), jax.tree.leaves(loss(drawn)), strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4, abs=1e-6)


def test_a_diffusion_model_is_scored_on_masked_tokens_of_completions(text_model: Path):
    """The noise leaves the prompt alone, a token's weight is 1/t, and old and new see the same draw."""
    bundle = sj.load(text_model)
    W = bundle.config.diff_block_size
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 300, (4, 2 * W)), jnp.int32)
    written = jnp.broadcast_to(jnp.arange(2 * W) >= 5, (4, 2 * W)).astype(jnp.float32)
    noise = noisy_completions(KEY, tokens, written, config=bundle.config)
    masked = np.asarray(noise["noisy"] == bundle.config.mask_token_id)
    assert not masked[:, :5].any()
    assert masked.any()
    np.testing.assert_array_equal(np.asarray(noise["noisy"])[~masked], np.asarray(tokens)[~masked])
    weight = np.asarray(noise["weight"])
    np.testing.assert_array_equal(weight > 0, masked)
    for block in (slice(5, W), slice(W, 2 * W)):  # one level for each block
        for row in range(4):
            assert len(set(weight[row, block][masked[row, block]].tolist())) <= 1
    assert (weight[masked] >= 1).all()

    objective = GroupRelativeObjective(group_size=2)
    batch = {"tokens": tokens, "target": tokens, **noise}
    scores = partial(token_scores, bundle.params, config=bundle.config, compute=bundle.compute, temperature=1.0)
    batch["old"], _ = scores(batch)
    batch["advantage"] = jnp.array([1.0, -1.0, 0.0, 0.0])
    drawn = objective.draw(batch, KEY, PROGRESS, bundle.config)
    loss, metrics = objective.loss(bundle.params, drawn, PROGRESS, config=bundle.config, compute=bundle.compute)
    # With a ratio of exactly 1 the loss is −Σ weight · A.
    shares = np.asarray(token_shares(noise["weight"], 2))
    assert float(loss) == pytest.approx(-float(shares[0].sum() - shares[1].sum()), rel=1e-5)
    assert float(metrics["clipped"]) == 0

    # The scores are those of the bound: the first block's are the logits of a canvas that holds the noisy block alone.
    canvas = np.asarray(noise["noisy"])[:1, :W]
    log_probs = np.asarray(jax.nn.log_softmax(sj.forward(bundle, canvas).logits))[0]
    at = np.flatnonzero(masked[0, :W])
    np.testing.assert_allclose(batch["old"][0, at], log_probs[at, np.asarray(tokens)[0, at]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 1}, r"objective.group_size is 1, but it must be at least 2"),
        ({"clip_low": 1.0}, "objective.clip_low is 1.0, but it must be between 0 and 1"),
        ({"clip_high": 0.0}, "objective.clip_high is 0.0, but it must be positive"),
        ({"kl_weight": -1.0}, "objective.kl_weight"),
        ({"temperature": 0.0}, "objective.temperature"),
    ],
)
def test_bad_settings(fields: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(GroupRelativeObjective(), **fields)

"""The optimizer: learning-rate schedules, weight decay, clipping, and the values it refuses."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steerling_jax.errors import UserError
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.objectives.optimizer import OptimizerConfig, decay_mask, learning_rate, make_optimizer
from steerling_jax.train.run.config_files import load_config


def test_cosine_rate() -> None:
    rate = learning_rate(OptimizerConfig(peak_rate=2.0, warmup_steps=10, schedule="cosine", final_fraction=0.1), 110)
    values = [np.asarray(rate(step)) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.2, 1.0, 2.0, 2.0, 1.1, 0.2], rtol=1e-6)


def test_wsd_rate() -> None:
    rate = learning_rate(OptimizerConfig(peak_rate=1.0, warmup_steps=5, schedule="wsd", decay_fraction=0.2), 100)
    values = [np.asarray(rate(step)) for step in (0, 4, 40, 80, 90, 99, 100)]
    np.testing.assert_allclose(values, [0.2, 1.0, 1.0, 1.0, 0.5, 0.05, 0.0], atol=1e-6)


def test_decay_is_for_matrices_between_features_only() -> None:
    model = dataclasses.replace(load_config("tiny").model, weight_sharing=False, use_bias=True)
    mask = decay_mask(param_shapes(model))
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, on in jax.tree_util.tree_leaves_with_path(mask)
        if on
    }
    assert decayed == {
        "lm_head/weight",
        "blocks/attn/c_q/weight",
        "blocks/attn/c_kv/weight",
        "blocks/attn/c_proj/weight",
        "blocks/mlp/c_fc/weight",
        "blocks/mlp/c_proj/weight",
        "known_head/concept_predictor/weight",
        "unknown_head/embedding_basis/weight",
        "unknown_head/predictor_down/weight",
        "unknown_head/predictor_up/weight",
    }


def test_optimizer_decays_and_clips() -> None:
    config = OptimizerConfig(
        peak_rate=0.1, warmup_steps=0, schedule="wsd", decay_fraction=0.0, weight_decay=0.5, clip_norm=1.0
    )
    params = {"lm_head": {"weight": jnp.ones((2, 2))}, "ln_f": {"weight": jnp.ones(2)}}
    optimizer = make_optimizer(config, 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = {"lm_head": {"weight": jnp.full((2, 2), -0.05)}, "ln_f": {"weight": jnp.zeros(2)}}
    chex.assert_trees_all_close(updates, decayed, rtol=1e-6)
    large = jax.tree.map(lambda leaf: 1e6 * jnp.ones_like(leaf), params)
    _, state = optimizer.update(large, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), (1 - config.b1) * 1.0, rtol=1e-5)


@pytest.mark.parametrize("field", [{"peak_rate": 0.0}, {"schedule": "linear"}, {"b2": 1.0}, {"clip_norm": -1.0}])
def test_impossible_optimizer_values(field: dict) -> None:
    with pytest.raises(UserError, match=f"optimizer.{next(iter(field))} is .* but it must"):
        OptimizerConfig(**field)

"""Muon: which parameters it updates, the size of its updates, and the sharding of its moments."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.objectives.optimizer import OptimizerConfig, like_parameters, make_optimizer, muon_labels
from tests.objectives.test_objective import CONFIG

MUON = OptimizerConfig(kind="muon", peak_rate=0.1, warmup_steps=0, schedule="wsd", decay_fraction=0.0, weight_decay=0.0)


def by_path(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def drawn(seed: int) -> Params:
    """Parameters or gradients; only their shapes matter."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), param_shapes(CONFIG))


def test_muon_updates_matrices_between_features_only() -> None:
    model = dataclasses.replace(CONFIG, weight_sharing=False, use_bias=True)
    labels = by_path(muon_labels(param_shapes(model)))
    assert {path for path, label in labels.items() if label == "muon"} == {
        "blocks/attn/c_q/weight",
        "blocks/attn/c_kv/weight",
        "blocks/attn/c_proj/weight",
        "blocks/mlp/c_fc/weight",
        "blocks/mlp/c_proj/weight",
        "unknown_head/embedding_basis/weight",
        "unknown_head/predictor_down/weight",
    }


def test_updates_have_equal_singular_values_and_the_size_of_adamws() -> None:
    params, grads = drawn(0), drawn(1)
    optimizer = make_optimizer(MUON, 10)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    found, labels = by_path(updates), by_path(muon_labels(params))
    for path, label in labels.items():
        if label == "muon":
            matrices = np.asarray(found[path]).reshape(-1, *found[path].shape[-2:])
            for matrix in matrices:  # a stack of them is not one large one
                sizes = np.linalg.svd(matrix, compute_uv=False) / (MUON.peak_rate * 0.2 * max(matrix.shape) ** 0.5)
                assert np.sort(sizes)[1] > 0.4, path  # five iterations do not raise one that is almost zero
                assert sizes.max() < 1.5, path
    # The rest is AdamW as it is without Muon.
    plain = make_optimizer(dataclasses.replace(MUON, kind="adamw"), 10)
    expected = by_path(jax.jit(plain.update)(grads, plain.init(params), params)[0])
    for path, label in labels.items():
        if label == "adamw":
            chex.assert_trees_all_close(found[path], expected[path], rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_found_by_their_parameters(kind) -> None:
    params = drawn(0)
    optimizer = make_optimizer(dataclasses.replace(MUON, kind=kind), 10)
    state = jax.eval_shape(optimizer.init, params)
    shapes = like_parameters(state, jax.tree.map(lambda leaf: np.array(leaf.shape), params), otherwise=np.array(()))
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert tuple(shape) in (leaf.shape, ())
    moments = sum(leaf.size > 0 for leaf in jax.tree.leaves(shapes))
    tables = sum(label == "adamw" for label in by_path(muon_labels(params)).values())
    count = len(jax.tree.leaves(params))
    assert moments == (2 * count if kind == "adamw" else count + tables)


def test_decay_applies_to_the_same_parameters_as_with_adamw() -> None:
    params = drawn(0)
    optimizer = make_optimizer(dataclasses.replace(MUON, weight_decay=0.5), 10)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    moved = {path for path, leaf in by_path(updates).items() if float(jnp.abs(leaf).max()) > 0}
    assert "blocks/mlp/c_fc/weight" in moved
    assert "known_head/concept_predictor/weight" in moved
    assert not moved & {"tok_emb/weight", "known_head/concept_embedding/weight", "blocks/ln_1/weight", "ln_f/weight"}


@pytest.mark.parametrize("field", [{"kind": "sgd"}, {"momentum": 1.0}])
def test_impossible_values(field: dict) -> None:
    with pytest.raises(UserError, match=f"optimizer.{next(iter(field))} is .* but it must"):
        OptimizerConfig(**field)

"""The moving average of the parameters: its weights, its sharding, and that a run exports it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import steerling_jax as sj
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig, make_optimizer
from steerling_jax.objectives.parameter_average import averaged
from steerling_jax.objectives.training_step import evaluated_params, init_state, recipe_optimizer, state_shardings
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import RunFinished
from steerling_jax.train.run.run_config import RunConfig
from tests.worlds.training_world import CONFIG, make_corpus, train_in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A small run with a dictionary, which averages its parameters."""
    file = tmp_path_factory.mktemp("average") / "small.py"
    file.write_text(CONFIG)
    run = load_config(file)
    assert run.model.concept is not None
    concept = dataclasses.replace(
        run.model.concept, factorize_unknown=False, use_epsilon_correction=False, dictionary=DictionaryConfig()
    )
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, n_layers=1, concept=concept),
        objective=DictionaryObjective(backbone="trained"),
        optimizer=dataclasses.replace(run.optimizer, average=0.75),
    )


def test_later_parameters_weigh_more():
    config = OptimizerConfig(warmup_steps=0, peak_rate=0.1, weight_decay=0.0, average=0.5)
    optimizer = make_optimizer(config, 10)
    params: Any = {"ln_f": {"weight": jnp.array([1.0, -2.0])}}
    state, after = optimizer.init(params), []
    chex.assert_trees_all_equal(averaged(params, state, 0.5), params)
    for gradient in (1.0, -0.5, 2.0):
        updates, state = optimizer.update({"ln_f": {"weight": jnp.full(2, gradient)}}, state, params)
        params = optax.apply_updates(params, updates)
        after.append(np.asarray(params["ln_f"]["weight"]))
    expected = (after[0] + 2 * after[1] + 4 * after[2]) / 7
    np.testing.assert_allclose(averaged(params, state, 0.5)["ln_f"]["weight"], expected, rtol=1e-6)


def test_the_average_of_a_dictionary_has_embeddings_of_length_1(run: RunConfig):
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, peak_rate=0.3, warmup_steps=0))
    state: Any = init_state(run, jax.random.key(0))
    optimizer = recipe_optimizer(run)
    params, opt_state = state.params, state.opt_state
    for number in range(2):
        keys = jax.random.split(jax.random.key(number), len(jax.tree.leaves(params)))
        drawn = [100 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, jax.tree.leaves(params))]
        updates, opt_state = optimizer.update(jax.tree.unflatten(jax.tree.structure(params), drawn), opt_state, params)
        params = optax.apply_updates(params, updates)
    plain = averaged(params, opt_state, 0.75)
    result = evaluated_params(run, state.replace(params=params, opt_state=opt_state))
    lengths = jnp.linalg.norm(result["unknown_head"]["concept_embedding"]["weight"], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert float(jnp.min(jnp.linalg.norm(plain["unknown_head"]["concept_embedding"]["weight"], axis=1))) < 0.9999
    chex.assert_trees_all_equal(result["blocks"], plain["blocks"])


def test_the_average_is_sharded_as_the_parameters_are(run: RunConfig):
    shardings: Any = state_shardings(run, make_mesh(MeshShape()))
    (state,) = (one for one in shardings.opt_state if hasattr(one, "total"))
    assert state.total == shardings.params


def test_a_stopped_run_exports_the_same_average(run: RunConfig, tmp_path: Path):
    bare = dataclasses.replace(run.model, interpretable=False, concept=None)
    run = dataclasses.replace(run, model=bare, objective=NextTokenObjective(), steps=4, checkpoint_every=2)
    store = CorpusStore(make_corpus(tmp_path / "corpus"))
    *_, whole = train_in(tmp_path / "whole", run, store)
    stops = iter([False, True])
    list(train_in(tmp_path / "halves", run, store, stop=lambda: next(stops)))
    *_, halves = train_in(tmp_path / "halves", run, store)
    assert isinstance(whole, RunFinished)
    assert isinstance(halves, RunFinished)
    chex.assert_trees_all_equal(whole.params, halves.params)
    last = sj.load(tmp_path / "whole").params  # of the newest checkpoint, with which training would go on
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), last, whole.params)
    assert moved["tok_emb"]["weight"] > 1e-6

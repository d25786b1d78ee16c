"""The stages of a strict bottleneck: heads on a frozen backbone without concepts, then everything; resumed exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.models.steerling.model import init_params
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import Event, RunFinished
from steerling_jax.train.run.initial_weights import find_initial_weights
from steerling_jax.train.run.run_config import RunConfig
from tests.worlds.training_world import CONFIG, make_corpus, train_in


@dataclasses.dataclass
class World:
    """A run of the heads' stage, which starts from a backbone with the parameters `backbone`."""

    run: RunConfig
    store: CorpusStore
    backbone: Params

    def train(self, out: Path, run: RunConfig, **options: Any) -> Iterator[Event]:
        return train_in(out, run, self.store, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("stages")
    (root / "small.py").write_text(CONFIG)
    run = load_config(root / "small.py")
    model = dataclasses.replace(run.model, n_layers=1)
    assert model.concept is not None
    bare = dataclasses.replace(model, interpretable=False, concept=None)
    backbone = init_params(bare, jax.random.key(7))
    write_published(root / "backbone", bare, backbone)
    concept = dataclasses.replace(
        model.concept, factorize_unknown=False, use_epsilon_correction=False, dictionary=DictionaryConfig()
    )
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(model, concept=concept),
        objective=DictionaryObjective(dead_after=1),
        steps=4,
        checkpoint_every=2,
        start_from=str(root / "backbone"),
    )
    return World(run, CorpusStore(make_corpus(root / "corpus")), backbone)


def test_stages_follow_each_other_and_are_resumed(world: World, tmp_path: Path) -> None:
    *_, whole = world.train(tmp_path / "whole", world.run)
    stops = iter([False, True])
    list(world.train(tmp_path / "halves", world.run, stop=lambda: next(stops)))
    began, *_, halves = world.train(tmp_path / "halves", world.run)
    assert "checkpoints/2" in str(began)
    assert isinstance(whole, RunFinished)
    assert isinstance(halves, RunFinished)
    jax.tree.map(np.testing.assert_array_equal, whole.params, halves.params)
    for name, leaves in world.backbone.items():
        jax.tree.map(np.testing.assert_array_equal, leaves, whole.params[name])

    write_published(tmp_path / "heads", world.run.model, whole.params)
    objective = DictionaryObjective(backbone="trained", initial="given", diffusion=(1.0, 1.0), likeness=(0.0, 0.0))
    run = dataclasses.replace(world.run, objective=objective, steps=1, start_from=str(tmp_path / "heads"))
    *_, last = world.train(tmp_path / "both", run)
    assert isinstance(last, RunFinished)
    before = read_published(tmp_path / "heads")[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, last.params)
    assert all(0 < step < 0.01 for step in jax.tree.leaves(moved["blocks"]))
    assert moved["unknown_head"]["concept_embedding"]["weight"] < 0.01  # the given dictionary, and no new one


def test_new_heads_are_named_and_given_ones_must_exist(world: World, tmp_path: Path) -> None:
    began, *_ = world.train(tmp_path / "new", dataclasses.replace(world.run, steps=1))
    assert "new parameters: known_head, unknown_head" in str(began)
    given = dataclasses.replace(world.run, objective=DictionaryObjective(initial="given"))
    with pytest.raises(UserError, match="has no known_head"):
        find_initial_weights(given)


def test_objective_and_model_must_fit(world: World) -> None:
    with pytest.raises(UserError, match="is trained with a DictionaryObjective"):
        dataclasses.replace(world.run, objective=ObjectiveConfig())
    with pytest.raises(UserError, match="name it with start_from"):
        dataclasses.replace(world.run, start_from=None)
    bare = dataclasses.replace(world.run.model, interpretable=False, concept=None)
    with pytest.raises(UserError, match=r"concept\.dictionary is set"):
        dataclasses.replace(world.run, model=bare)

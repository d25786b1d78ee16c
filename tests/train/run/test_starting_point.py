"""Where the state of a run comes from: a checkpoint, other weights, or a random initialisation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.train.run.events import (
    RunFinished,
    RunStarted,
    RunStopped,
)
from steerling_jax.train.run.initial_weights import InitialWeights, find_initial_weights
from tests.worlds.counting_runs import CountingRuns, metrics_lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingRuns]:
    with pytest.MonkeyPatch.context() as patch:
        yield CountingRuns(tmp_path_factory.mktemp("long"), patch)


def test_the_sources_of_a_new_and_a_resumed_run(world: CountingRuns, tmp_path: Path) -> None:
    """A new run is stopped after 3 steps and resumed; the sources are in the event and in metrics.jsonl."""
    stops = iter([False, False, True])
    first, *_, last = world.train(tmp_path, steps=6, stop=lambda: next(stops))
    assert isinstance(first, RunStarted)
    assert first.sources == (
        "parameters: random, seed 0",
        "optimizer: new state",
        "data: from batch 0 on, in the order of seed 0",
    )
    assert isinstance(last, RunStopped)
    assert last.step == 3
    first, *_, last = world.train(tmp_path, steps=6)
    assert isinstance(first, RunStarted)
    assert first.sources == (
        f"state and clock, step 3: {tmp_path / 'checkpoints/3'}",
        "data: from batch 3 on, in the order of seed 0",
        "metrics.jsonl: lines up to step 3",
    )
    assert isinstance(last, RunFinished)
    assert last.clock["starts"] == 2
    assert [(line["step"], line["order"]) for line in metrics_lines(tmp_path, "start")][1] == (3, list(first.sources))


def test_initial_weights(world: CountingRuns, tmp_path: Path) -> None:
    """From a published folder, and then from that run's training folder: equal parameters, a new optimizer state."""
    before = str(world.model)
    for name in ("first", "second"):
        began, *_, done = world.train(tmp_path / name, steps=2, start_from=before)
        assert isinstance(began, RunStarted)
        assert began.sources[0].startswith(f"parameters: {before}, fingerprint ")
        assert began.sources[1] == "optimizer: new state"
        assert isinstance(done, RunFinished)
        jax.tree.map(np.testing.assert_array_equal, done.params, world.params)
        before = str(tmp_path / name)
    run = json.loads((tmp_path / "first/run.json").read_text())
    assert run["start"]["folder"] == str(world.model)
    assert run["start"]["fingerprint"] in began.sources[0]


def test_initial_weights_that_change_are_refused(world: CountingRuns, tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    write_published(model, world.config.model, world.params)
    next(world.train(out, steps=2, start_from=str(model)))  # killed before anything was saved
    write_published(model, world.config.model, world.draw(8))
    with pytest.raises(UserError, match=r"out began with .*/model, fingerprint \w+, but .*/model now has \w+: restore"):
        next(world.train(out, steps=2, start_from=str(model)))
    with pytest.raises(UserError, match="run with another config: start_from is null, was"):
        world.train(out, steps=2)


def test_initial_weights_of_another_shape_are_refused(world: CountingRuns, tmp_path: Path) -> None:
    run = dataclasses.replace(world.config, start_from=str(world.model))
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, intermediate_size=100))
    with pytest.raises(UserError, match=r"model has blocks.mlp.c_fc.weight of shape \(1, 2, 128, 32\), but the model"):
        find_initial_weights(wider)
    whole = dataclasses.replace(run, model=dataclasses.replace(world.whole.model, n_layers=1))
    with pytest.raises(UserError, match=r"has no known_head\S+, but the model of config 'small' has known_head"):
        find_initial_weights(whole)
    with pytest.raises(UserError, match="no folder and no bundled model 'absent'"):
        find_initial_weights(dataclasses.replace(run, start_from="absent"))


def test_initial_weights_with_other_tokens_or_concepts_are_refused(world: CountingRuns, tmp_path: Path) -> None:
    other = InitialWeights(tmp_path, world.whole.model)
    other.check_corpus(world.store)
    concepts = [concept | {"name": f"renamed {concept['id']}"} for concept in world.store.concepts]
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    with pytest.raises(UserError, match=r"calls concept 0 'renamed 0', the corpus .* 'concept 0'"):
        other.check_corpus(world.store)
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match="has another tokenizer than the corpus"):
        other.check_corpus(world.store)


def test_a_damaged_training_folder_is_refused_as_initial_weights(world: CountingRuns, tmp_path: Path) -> None:
    *_, done = world.train(tmp_path / "out", steps=1)
    assert isinstance(done, RunFinished)
    path = max((tmp_path / "out/checkpoints/1/state").rglob("*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged: state/\S+ is not what was saved"):
        next(world.train(tmp_path / "next", steps=1, start_from=str(tmp_path / "out")))

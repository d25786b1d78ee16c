"""Run configs: values that are refused, what a resumed run may change, and the bytes of run.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.run.config_difference import first_difference
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.run_folder import open_folder
from tests.worlds.training_world import CONFIG, make_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return load_config(path)


def test_tiny_is_a_config_for_the_bundled_corpus() -> None:
    from steerling_jax.train.corpus.ontology import read_concepts

    run = load_config("tiny")
    assert run.model.concept is not None
    assert run.model.concept.n_concepts == len(read_concepts())


# run.json as version 0.1.0 wrote it, for the configuration that `saved_run` builds.
SAVED = Path(__file__).with_name("run.json")


def saved_run(run: RunConfig) -> RunConfig:
    return dataclasses.replace(
        run,
        objective=SteeringObjective(),
        lora=LoraConfig(rank=2),
        start_from="model",
        accumulate=2,
        checkpoint_minutes=2.5,
        keep_every=10,
    )


def test_run_json_keeps_its_bytes(run: RunConfig, tmp_path: Path) -> None:
    """A new run writes the bytes that earlier versions wrote.

    Users resume runs that an earlier version started: leave new fields out of run.json while they have their defaults,
    or raise its format version.
    """
    store = CorpusStore(make_corpus(tmp_path / "corpus"))
    (tmp_path / "out").mkdir()
    open_folder(saved_run(run), store, tmp_path / "out")
    assert (tmp_path / "out/run.json").read_bytes() == SAVED.read_bytes()


def test_a_run_json_of_an_earlier_version_is_continued(run: RunConfig, tmp_path: Path) -> None:
    """Opening the folder compares run.json with the config, accepts it and leaves it as it is."""
    store, out = CorpusStore(make_corpus(tmp_path / "corpus")), tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_bytes(SAVED.read_bytes())
    (out / "concepts.json").write_text(json.dumps(store.concepts))
    open_folder(saved_run(run), store, out)
    assert (out / "run.json").read_bytes() == SAVED.read_bytes()


def test_unknown_configs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config 'tinny'; did you mean tiny"):
        load_config("tinny")
    with pytest.raises(UserError, match=r"no config file .*absent\.py"):
        load_config(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"has no function config\(\)"):
        load_config(tmp_path / "empty.py")


def test_the_first_difference_is_named(run: RunConfig) -> None:
    saved = run.to_json()
    assert first_difference(saved, json.loads(json.dumps(saved))) is None
    free = dataclasses.replace(
        run, log_every=7, eval_every=9, keep=5, checkpoint_minutes=3, data=dataclasses.replace(run.data, corpus="/else")
    )
    assert first_difference(saved, free.to_json()) is None
    other = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, b2=0.99))
    assert first_difference(saved, other.to_json()) == "optimizer.b2 is 0.99, was 0.95"
    longer = dataclasses.replace(run, steps=run.steps + 1)
    assert first_difference(saved, longer.to_json()) == "steps is 61, was 60"


def test_values_out_of_range_are_refused(run: RunConfig) -> None:
    with pytest.raises(UserError, match="checkpoint_every is 0"):
        dataclasses.replace(run, checkpoint_every=0)
    with pytest.raises(UserError, match="checkpoint_minutes is 0, but it must be positive"):
        dataclasses.replace(run, checkpoint_minutes=0)
    with pytest.raises(UserError, match=r"keep_every is 7, but it must be a multiple of checkpoint_every \(5\)"):
        dataclasses.replace(run, keep_every=7)
    with pytest.raises(UserError, match=r"data.seq_len \(65\) must not exceed"):
        dataclasses.replace(run, data=dataclasses.replace(run.data, seq_len=65))
    with pytest.raises(UserError, match="must equal the model's vocab_size"):
        dataclasses.replace(run, data=dataclasses.replace(run.data, vocab_size=100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: NoiseConfig(distribution="gausian"), "noise.distribution is 'gausian', but it must be uniform or"),  # type: ignore[arg-type]
        (lambda run: NoiseConfig(floor=0.0), "noise.floor is 0.0"),
        (lambda run: ObjectiveConfig(token_weight="1/t"), "objective.token_weight is '1/t', but it must be 'one' or"),  # type: ignore[arg-type]
        (lambda run: ObjectiveConfig(rows=0.0), "objective.rows is 0.0"),
        (lambda run: ObjectiveConfig(epsilon_dropout=0.3), "objective.epsilon_dropout is 0.3, but it must be two"),  # type: ignore[arg-type]
        (lambda run: SteeringObjective(token_weight="half"), "objective.token_weight is 'half'"),  # type: ignore[arg-type]
        (lambda run: dataclasses.replace(run, seed=-1), "seed is -1"),
        (lambda run: dataclasses.replace(run, objective=SteeringObjective(inject_layer=3)), "layers are 1 to 2"),
        (
            lambda run: dataclasses.replace(
                run,
                objective=ObjectiveConfig(noise=NoiseConfig(clean_context=True)),
                data=dataclasses.replace(run.data, seq_len=30),
            ),
            r"data.seq_len \(30\) must be a multiple of the model's diff_block_size \(8\)",
        ),
        (
            lambda run: dataclasses.replace(
                run,
                objective=SteeringObjective(),
                model=dataclasses.replace(run.model, interpretable=False, concept=None),
            ),
            "needs a model with concepts",
        ),
    ],
)
def test_objectives_that_do_not_fit_the_model_are_refused(
    change: Callable[[RunConfig], object], message: str, run: RunConfig
) -> None:
    with pytest.raises(UserError, match=message):
        change(run)

"""The pieces of training: rates, decay, the guarded step, configs, metrics, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig, decay_mask, learning_rate, make_optimizer
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.run.clock import Clock
from steerling_jax.train.run.metrics import MetricsLog
from steerling_jax.train.run.run_config import RunConfig, first_difference, load_config, special_ids
from steerling_jax.train.run.run_folder import check_corpus, open_folder
from steerling_jax.train.run.step import init_state, train_step
from tests.worlds.training_world import CONFIG, FakeTokenizer, make_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return load_config(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("parts") / "corpus"))


# Optimizer.


def test_cosine_rate() -> None:
    rate = learning_rate(OptimizerConfig(peak_rate=2.0, warmup_steps=10, schedule="cosine", final_fraction=0.1), 110)
    values = [np.asarray(rate(step)) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.2, 1.0, 2.0, 2.0, 1.1, 0.2], rtol=1e-6)


def test_wsd_rate() -> None:
    rate = learning_rate(OptimizerConfig(peak_rate=1.0, warmup_steps=5, schedule="wsd", decay_fraction=0.2), 100)
    values = [np.asarray(rate(step)) for step in (0, 4, 40, 80, 90, 99, 100)]
    np.testing.assert_allclose(values, [0.2, 1.0, 1.0, 1.0, 0.5, 0.05, 0.0], atol=1e-6)


def test_decay_is_for_matrices_between_features_only(run: RunConfig) -> None:
    model = dataclasses.replace(run.model, weight_sharing=False, use_bias=True)
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


# The step.


def batch_of(run: RunConfig, store: CorpusStore) -> dict[str, np.ndarray]:
    from steerling_jax.train.data.pipeline import training_examples

    examples = training_examples(store, seq_len=run.data.seq_len, batch_size=run.data.batch_size, seed=0)
    return next(iter(examples))


def test_a_step_without_finite_numbers_changes_nothing_but_is_counted(run: RunConfig, store: CorpusStore) -> None:
    step, batch = jax.jit(partial(train_step, run=run)), batch_of(run, store)
    state = jax.jit(partial(init_state, run))()
    good, metrics = step(state, batch)
    assert int(good.skipped) == 0
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(good.params["tok_emb"]["weight"], state.params["tok_emb"]["weight"])
    state.params["ln_f"]["weight"] = jnp.full_like(state.params["ln_f"]["weight"], np.inf)
    bad, metrics = step(state, batch)
    assert (int(bad.step), int(bad.skipped), int(metrics["skipped"])) == (1, 1, 1)
    for new, old in zip(jax.tree.leaves((bad.params, bad.opt_state)), jax.tree.leaves((state.params, state.opt_state))):
        np.testing.assert_array_equal(new, old)


# Configs.


def test_tiny_is_a_config_for_the_bundled_corpus() -> None:
    from steerling_jax.train.corpus.ontology import read_concepts

    run = load_config("tiny")
    assert run.model.concept is not None
    assert run.model.concept.n_concepts == len(read_concepts())


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


def test_impossible_runs(run: RunConfig) -> None:
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
    ("change", "told"),
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
def test_objectives_that_mean_nothing(change: Callable[[RunConfig], object], told: str, run: RunConfig) -> None:
    with pytest.raises(UserError, match=told):
        change(run)


# Refusals.


def test_a_folder_of_another_run_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    open_folder(run, store, tmp_path)
    open_folder(run, store, tmp_path)
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, n_layers=3))
    with pytest.raises(UserError, match=r"run of another config: model\.n_layers is 3, was 2"):
        open_folder(wider, store, tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json cannot be read"):
        open_folder(run, store, tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"has checkpoints but no run.json"):
        open_folder(run, store, tmp_path)


def test_another_corpus_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    open_folder(run, store, tmp_path / "out")
    retokenized = CorpusStore(make_corpus(tmp_path / "retokenized", FakeTokenizer(sha256="1" * 64)))
    with pytest.raises(UserError, match=r"corpus with another tokenizer than .*retokenized"):
        open_folder(run, retokenized, tmp_path / "out")
    rewritten = CorpusStore(make_corpus(tmp_path / "rewritten", seed=1))
    with pytest.raises(UserError, match=r"corpus of other documents than .*rewritten"):
        open_folder(run, rewritten, tmp_path / "out")
    turned = CorpusStore(make_corpus(tmp_path / "turned"))
    turned.manifest["concepts"] = turned.concepts[::-1]
    with pytest.raises(UserError, match=r"corpus with other concepts, or in another order, than .*turned"):
        open_folder(run, turned, tmp_path / "out")


def test_a_corpus_that_does_not_fit_the_model_is_refused(run: RunConfig, store: CorpusStore, tmp_path: Path) -> None:
    check_corpus(run, store)
    larger = CorpusStore(make_corpus(tmp_path / "larger", FakeTokenizer(vocab_size=65)))
    with pytest.raises(
        UserError, match="has a vocabulary of 65, but config 'small' one of 64: it was made with another"
    ):
        check_corpus(run, larger)
    assert run.model.concept is not None
    fewer = dataclasses.replace(run.model, concept=dataclasses.replace(run.model.concept, n_concepts=7))
    with pytest.raises(UserError, match="has 8 known concepts, but config 'small' has n_concepts 7"):
        check_corpus(dataclasses.replace(run, model=fewer), store)
    moved = dataclasses.replace(run.model, mask_token_id=special_ids(64)["pad_token_id"])
    with pytest.raises(UserError, match="has mask_token_id 63, but the config"):
        check_corpus(dataclasses.replace(run, model=moved), store)
    altered = CorpusStore(make_corpus(tmp_path / "altered"))
    (altered.folder / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match="made with another tokenizer"):
        check_corpus(run, altered)


# Metrics.


def test_metrics_go_on_from_the_restored_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 8):
            log.write("step", step, {"loss": step / 2})
        log.write("evaluation", 7, {"bound": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    with MetricsLog(tmp_path, 5) as log:
        log.write("step", 6, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1] == {"kind": "step", "step": 6, "loss": 9.0}


def test_the_clock_adds_up_over_restarts() -> None:
    clock = Clock()
    with clock.phase("step"):
        pass
    clock.add({"starts": 2, "seconds": {"step": 10.0, "save": 1.5}})
    told = clock.to_json()
    assert told["starts"] == 3
    assert 10.0 <= told["seconds"]["step"] < 10.1
    assert told["seconds"]["save"] == 1.5
    assert told["seconds"]["other"] >= 0
    again = Clock()
    again.add(told)
    assert sum(again.to_json()["seconds"].values()) == pytest.approx(11.5, abs=0.1)

"""The objective against changes of language: its term beside a plain one in NumPy, its controls, and on a mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.language_features import feature_tables
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import init_params, model_backbone
from steerling_jax.objectives.language_tuning import LanguageObjective, pre_activation_excess
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.objective import Draws
from tests.worlds.language_features import make_features
from tests.worlds.paths import REPOSITORY
from tests.worlds.small_decoder import small_config, small_run

KEY, PROGRESS, CONFIG = jax.random.key(0), jnp.zeros(()), small_config()
FEATURES = make_features()
PARAMS = init_params(CONFIG, KEY)


def batch() -> dict[str, Any]:
    """Four samples in three languages; answers begin at different positions."""
    begin = np.array([[3], [5], [7], [2]])
    return {
        "tokens": jax.random.randint(KEY, (4, 12), 0, 59),
        "answer": jnp.where(jnp.arange(12)[None] >= begin, 0, -1),
        "language": jnp.array([0, 1, 2, 2], jnp.int32),
    }


def plain_excess(hidden: np.ndarray, language: np.ndarray, counted: np.ndarray, features: Any) -> tuple[float, int]:
    """(sum, pairs) by loops over samples, positions and the features of one layer."""
    total, pairs = 0.0, 0
    for b, t in np.argwhere(counted):
        for one in features:
            if one.language != language[b]:
                pre = float(hidden[b, t].astype(np.float64) @ one.column.astype(np.float64)) + one.bias
                total += max(0.0, pre - float(one.means[language[b]]))
                pairs += 1
    return total, pairs


def loss_and_metrics(penalty: Any, weight: float, params: Any = PARAMS) -> tuple[Any, Any]:
    objective = LanguageObjective(features=FEATURES, penalty=penalty, weight=weight)
    drawn = objective.draw(batch(), KEY, PROGRESS, CONFIG)
    return objective.loss(params, drawn, PROGRESS, config=CONFIG, compute=Compute())


@pytest.mark.parametrize(("penalty", "features"), [("features", "monolingual"), ("random_features", "random")])
def test_the_term_of_the_loss(penalty: str, features: str):
    """Also that the control reads other features than the term itself."""
    given = batch()
    loss, metrics = loss_and_metrics(penalty, 0.5)
    backbone = model_backbone(CONFIG, Compute())
    captured = backbone.run(PARAMS, backbone.embed(PARAMS, given["tokens"]), capture=(0, 1)).captured
    counted = np.roll(np.asarray(given["answer"]), -1, axis=1) >= 0
    counted[:, -1] = False
    total, pairs = 0.0, 0
    for layer in (0, 1):
        own = [one for one in getattr(FEATURES, features) if one.layer == layer]
        part = plain_excess(np.asarray(captured[layer]), np.asarray(given["language"]), counted, own)
        total, pairs = total + part[0], pairs + part[1]
    plain = NextTokenObjective(masked=0.0)
    expected, _ = plain.loss(
        PARAMS, plain.draw(given, KEY, PROGRESS, CONFIG), PROGRESS, config=CONFIG, compute=Compute()
    )
    assert total > 1
    assert float(metrics["penalty"]) == pytest.approx(total / (pairs + 1), rel=1e-4)
    assert float(metrics["next"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(loss) == pytest.approx(float(expected) + 0.5 * total / (pairs + 1), rel=1e-5)


def test_the_gradient_by_finite_differences():
    rng = np.random.default_rng(1)
    hidden = rng.normal(0, 1, (2, 3, 32)).astype(np.float32)
    language, counted = jnp.array([0, 2]), jnp.array([[True, False, True], [True, True, False]])
    (table,) = feature_tables([one for one in FEATURES.monolingual if one.layer == 0]).values()
    excess = partial(pre_activation_excess, language=language, counted=counted, table=table)
    gradient = np.asarray(jax.grad(excess)(jnp.asarray(hidden)))
    assert not gradient[~np.asarray(counted)].any()
    direction = rng.normal(0, 1, hidden.shape).astype(np.float32)
    step = 1e-3  # shorter than the way to the next corner of the hinge
    ends = [float(excess(jnp.asarray(hidden + sign * step * direction))) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


def test_no_term_at_or_below_the_mean_and_in_the_feature_s_own_language():
    (table,) = feature_tables([one for one in FEATURES.monolingual if one.layer == 0]).values()
    column = table.columns[:, 2]  # Korean's
    table = table._replace(
        columns=column[:, None], bias=np.zeros(1, np.float32), language=np.array([2], np.int32),
        means=np.full((3, 1), 4.0, np.float32),
    )  # fmt: skip
    unit = column / (column @ column)
    rows = jnp.asarray(np.stack([3.9 * unit, 5.0 * unit])[None])
    counted = jnp.ones((1, 2), bool)

    def value(rows: jax.Array, language: int) -> jax.Array:
        return pre_activation_excess(rows, jnp.array([language]), counted, table)

    assert float(value(rows[:, :1].repeat(2, axis=1), 0)) == 0
    assert not np.asarray(jax.grad(value)(rows[:, :1].repeat(2, axis=1), 0)).any()
    assert float(value(rows, 0)) == pytest.approx(1.0, rel=1e-4)
    assert float(value(rows, 2)) == 0


def test_the_penalty_on_tokens_of_other_scripts():
    """German and English share their script, so only Korean tokens count for them, and Latin ones for Korean; tokens
    with letters of both are nobody's fault."""
    given = batch()
    unwanted = FEATURES.unwanted_tokens()
    assert [np.flatnonzero(row).tolist() for row in unwanted] == [list(range(10, 15))] * 2 + [list(range(5))]
    loss, metrics = loss_and_metrics("script_tokens", 2.0)
    bundle = sj.Bundle(CONFIG, PARAMS, tokenizer=Any)  # type: ignore[arg-type]
    shares = np.asarray(jax.nn.softmax(sj.forward(bundle, np.asarray(given["tokens"])).logits))
    mass = np.stack([shares[b][:, unwanted[language]].sum(-1) for b, language in enumerate([0, 1, 2, 2])])
    counted = np.roll(np.asarray(given["answer"]), -1, axis=1) >= 0
    counted[:, -1] = False
    assert float(metrics["penalty"]) == pytest.approx(mass[counted].mean(), rel=1e-4)
    assert float(loss) == pytest.approx(float(metrics["next"]) + 2 * mass[counted].mean(), rel=1e-5)
    plain, none = loss_and_metrics("none", 2.0)
    assert float(plain) == float(none["next"])
    assert float(none["penalty"]) == 0


def test_micro_batches_add_up_to_the_batch():
    objective = LanguageObjective(features=FEATURES, weight=0.5)
    drawn = objective.draw(batch(), KEY, PROGRESS, CONFIG)
    loss = partial(objective.loss, PARAMS, progress=PROGRESS, config=CONFIG, compute=Compute())
    parts = drawn.split(2)
    halves = [loss(Draws(jax.tree.map(lambda leaf, m=m: leaf[m], parts), drawn.shared)) for m in range(2)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.tree.map(jnp.add, *halves), loss(drawn))


def test_settings_that_do_not_fit():
    data = small_run().data
    for values, words in (
        ({"penalty": "words"}, r"objective\.penalty is 'words', but it must be one of"),
        ({"weight": -1.0}, r"objective\.weight is -1\.0"),
        ({"features": make_features(width=24)}, "reads rows of width 24 of layer 0, but the model has width 32"),
        ({"features": make_features(layers=(1, 5))}, "of layer 5, but the model has width 32 and layers 0 to 1"),
        ({"features": make_features(vocab_size=60), "penalty": "script_tokens"}, "has 60 tokens, but the model 64"),
        ({}, "needs conversations, each with its language"),
    ):
        with pytest.raises(sj.UserError, match=words):
            small_run(objective=LanguageObjective(**{"features": FEATURES, **values}), data=data)
    with pytest.raises(sj.UserError, match="was made with another model than here, from which the run starts"):
        LanguageObjective(features=make_features("abc")).check_start("def", "here")


def test_losses_on_a_mesh_are_those_of_one_device():
    """On eight devices, in a process of its own, with adapters and with all parameters."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.worlds.sharded_language_tuning"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 3
    for name, metrics in found.items():
        assert metrics["penalty"][0] > 0, name
        for key, (alone, together) in metrics.items():
            assert together == pytest.approx(alone, rel=2e-4), (name, key)

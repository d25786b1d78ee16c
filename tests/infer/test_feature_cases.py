"""`steerling steer-eval` with a feature: what is chosen, what is measured, and the controls beside it."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.infer.steer_eval.feature_cases import (
    ArmFigures,
    CaseSettings,
    choose,
    find_candidates,
    make_judge,
    push,
)
from steerling_jax.infer.steer_eval.neutral_loss import neutral_loss
from steerling_jax.progress import no_progress
from tests.worlds.topic_texts import AUTOENCODER, MODEL, READ_WITH, topic_texts


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(MODEL, dtype="float32")


def texts(topic: str, bundle: sj.Bundle, count: int = 12) -> list[str]:
    return topic_texts(topic, count, bundle.config.vocab_size)


def test_the_choice_has_the_largest_effect_within_the_limit():
    def arm(found: float, damage: float, strength: float) -> ArmFigures:
        return ArmFigures("feature", 1, strength, Estimate(found, 0, 1, 6), damage, 0.0, 0, [])

    settings = CaseSettings((1.0, 2.0), 8, suppress=False, limit=0.5, seed=0)
    arms = [arm(0.5, 0.1, 1), arm(0.9, 0.6, 4), arm(0.7, 0.5, 2), arm(0.7, 0.2, 1)]
    assert choose(arms, settings) == 3  # the strongest effect does too much damage, the weaker of two equals is taken
    assert choose(arms, CaseSettings((1.0,), 8, suppress=True, limit=0.5, seed=0)) == 0
    assert choose(arms, CaseSettings((1.0,), 8, suppress=False, limit=0.05, seed=0)) == 0  # the least damage


def test_the_judge_knows_texts_by_their_words():
    judge, area = make_judge([f"def f{i}(x): return x" for i in range(9)], [f"the end of {i} words" for i in range(9)])
    assert area == 1.0
    assert judge(["def g(x): pass", "the other words"]).tolist() == [True, False]


def test_candidates_have_directions_of_the_usual_latent(bundle: sj.Bundle):
    autoencoder = sj.load_autoencoder(AUTOENCODER, k=10)
    positive, negative = texts("low", bundle), texts("high", bundle)
    (one,) = find_candidates(bundle, [autoencoder], positive, negative, no_progress)
    latents, means = [], []
    for text in (*positive, *negative):
        rows = sj.hidden_states(bundle, [[int(word) for word in text.split()]], layers=[1])[1][0]
        norms = np.linalg.norm(rows, axis=1)
        usual = norms <= 6 * np.median(norms)
        latents.append((np.asarray(autoencoder.encode(rows, dense=True)) * usual[:, None]).max(axis=0))
        means.append(rows[usual].mean(axis=0))
    strongest = np.array(latents)[:, one.feature]
    assert one.difference == pytest.approx((strongest[:12] > 0).mean() - (strongest[12:] > 0).mean())
    expected = strongest[:12][strongest[:12] > 0].mean() * np.asarray(autoencoder.weights.W_dec[one.feature])
    np.testing.assert_allclose(one.direction, expected, rtol=1e-3, atol=1e-4)
    difference = np.mean(means[:12], axis=0) - np.mean(means[12:], axis=0)
    np.testing.assert_allclose(np.linalg.norm(one.means), np.linalg.norm(one.direction), rtol=1e-4)
    cosine = one.means @ difference / np.linalg.norm(one.means) / np.linalg.norm(difference)
    assert cosine == pytest.approx(1.0, abs=1e-3)


def test_the_loss_of_neutral_texts_is_that_of_their_tokens(bundle: sj.Bundle):
    text = texts("low", bundle, 1)[0]
    ids = np.array([int(word) for word in text.split()])
    edit = push(np.full(bundle.backbone.width, 0.5, np.float32), 0, bundle.backbone.n_layers)
    for edits in ((), (edit,)):
        logits = np.asarray(sj.forward(bundle, ids, edits=edits).logits[0], np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = -logs[np.arange(len(ids) - 1), ids[1:]].mean()
        assert neutral_loss(bundle, [text], edits, 0) == pytest.approx(expected, rel=1e-3)
    row = jnp.zeros((1, 1, bundle.backbone.width))
    np.testing.assert_array_equal(edit.apply(row, 0), 0.5 * jnp.ones_like(row))
    np.testing.assert_array_equal(edit.apply(row, 1), row)


def test_a_case_from_the_command_line(bundle: sj.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture):
    files = {}
    for name, topic in (("positive", "low"), ("negative", "high"), ("prompts", "high")):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("\n".join(texts(topic, bundle, 6)))
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    line = ["steer-eval", *READ_WITH, *options, "--strengths", "1", "--max-new-tokens", "4", "--damage-limit", "100"]
    assert main([*line, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in report["arms"]] == [
        "nothing", "feature", "random directions", "difference of means", "prompt",
    ]  # fmt: skip
    assert [len(arm["texts"]) for arm in report["arms"]] == [3, 3, 9, 3, 3]
    assert [arm["damage"] for arm in report["arms"] if arm["name"] in ("nothing", "prompt")] == [0, 0]
    assert all(arm["damage"] != 0 for arm in report["arms"] if arm["layer"] is not None)
    assert report["chosen"]["strength"] == 1
    assert len(report["tuning"]) == 2
    assert main(["steer-eval", *READ_WITH, *options[:4]]) == 2
    assert "--positive needs --prompts" in capsys.readouterr().err
    assert main(["steer-eval"]) == 2
    assert "Give --corpus" in capsys.readouterr().err
    files["prompts"].write_text("1 2\n")
    assert main(line) == 2
    assert "There are 1 texts in the file of --prompts" in capsys.readouterr().err

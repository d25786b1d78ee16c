"""`steerling steer-eval` with a feature: what is chosen, what is measured, and the controls beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.infer.steer_eval.case_arms import ArmFigures, CaseSettings, choose, push
from steerling_jax.infer.steer_eval.case_candidates import (
    concept_plan,
    find_candidates,
    find_concept,
    strongest_concepts,
)
from steerling_jax.infer.steer_eval.case_judges import script_judge, word_judge
from steerling_jax.infer.steer_eval.neutral_loss import neutral_loss
from steerling_jax.models.edits import LayerEdit
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
    judge = word_judge([f"def f{i}(x): return x" for i in range(9)], [f"the end of {i} words" for i in range(9)])
    assert judge.auc == 1.0
    assert judge.positive(["def g(x): pass", "the other words"]).tolist() == [True, False]


def test_the_script_judge_counts_letters():
    judge = script_judge("cyrillic", ["Все люди рождаются", "свободными"], ["All are born", "free"])
    assert judge.auc == 1.0
    texts = ["free and равными", "free, equal and in dignity я", "12", "всех"]
    assert judge.positive(texts).tolist() == [True, False, False, True]  # 7 of 14 letters, 1 of 23, none, all
    assert script_judge("Han", ["人人生而自由", "平等"], ["All", "free"]).positive(["自由", "free"]).tolist() == [
        True,
        False,
    ]
    with pytest.raises(sj.UserError, match="few letters of it"):
        script_judge("Greek", ["Все люди"], ["All"])


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
    assert main([*line, "--json", "--plot", str(tmp_path / "case.svg")]) == 0
    assert "<svg" in (tmp_path / "case.svg").read_text()
    report = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in report["arms"]] == [
        "nothing", "feature", "random directions", "difference of means", "prompt",
    ]  # fmt: skip
    assert [len(arm["texts"]) for arm in report["arms"]] == [3, 3, 9, 3, 3]
    assert [arm["damage"] for arm in report["arms"] if arm["name"] in ("nothing", "prompt")] == [0, 0]
    assert all(arm["damage"] != 0 for arm in report["arms"] if arm["layer"] is not None)
    assert report["chosen"]["strength"] == 1
    assert (report["concept"], report["judge"]) == (None, "words")
    assert len(report["tuning"]) == 2
    assert [set(one) for one in report["autoencoders"]] == [{"layer", "latents", "k"}]
    assert report["autoencoders"][0]["layer"] == report["chosen"]["layer"]
    assert main(["steer-eval", *READ_WITH, *options[:4]]) == 2
    assert "--positive needs --prompts" in capsys.readouterr().err
    assert main(["steer-eval"]) == 2
    assert "Give --corpus" in capsys.readouterr().err
    assert main([*line, "--plot", "case.txt"]) == 2
    assert "must end in" in capsys.readouterr().err
    assert main([*line, "--script", "Latin"]) == 2
    assert "--script is 'Latin'" in capsys.readouterr().err
    files["prompts"].write_text("1 2\n")
    assert main(line) == 2
    assert "There are 1 texts in the file of --prompts" in capsys.readouterr().err


@pytest.fixture(scope="module")
def concepts(text_model: Path) -> sj.Bundle:
    return sj.load(text_model, dtype="float32")


def test_the_built_in_concept_is_the_one_with_the_largest_difference(concepts: sj.Bundle):
    positive = ["def connect(self): return socket.socket()", "import threading"]
    negative = ["The end of the matter.", "A word."]
    found = find_concept(concepts, positive, negative, None, no_progress)
    assert found is not None
    activations = np.stack([strongest_concepts(concepts, text) for text in (*positive, *negative)])
    differences = activations[:2].mean(axis=0) - activations[2:].mean(axis=0)
    assert found.concept == int(np.argmax(differences))
    assert found.difference == pytest.approx(float(differences.max()))
    assert concepts.concept_names is not None
    assert found.name == concepts.concept_names[found.concept]
    named = find_concept(concepts, positive, negative, concepts.concept_names[1], no_progress)
    assert named is not None
    assert named.concept == 1
    assert named.difference == pytest.approx(float(differences[named.concept]))
    with pytest.raises(sj.UserError, match="There is no known concept"):
        find_concept(concepts, positive, negative, "No such", no_progress)


def test_a_concept_changes_the_loss_of_neutral_texts_at_masked_positions(concepts: sj.Bundle):
    texts = ["The socket is closed by the server when the thread ends, and the file is removed."]
    plain = neutral_loss(concepts, texts, (), 0)
    assert neutral_loss(concepts, texts, (), 0, concept_plan(concepts, 1, 8.0, False)) != plain
    # Suppression also acts on the logits: the same injection alone gives another loss.
    suppressed = concept_plan(concepts, 1, 4.0, True)
    without = dataclasses.replace(suppressed, suppression=jnp.zeros_like(suppressed.suppression))
    assert neutral_loss(concepts, texts, (), 0, suppressed) != neutral_loss(concepts, texts, (), 0, without)
    # The model has one layer, so that the same vector at all positions gives the same loss at the masked ones.
    vector = np.asarray(without.tables(0, concepts.backbone.n_layers)[0])
    edit = LayerEdit(push=jnp.asarray(vector)[:, None, None, :])
    assert neutral_loss(concepts, texts, (edit,), 0) == pytest.approx(neutral_loss(concepts, texts, (), 0, without))


def test_a_model_without_concepts_has_no_built_in_arm(bundle: sj.Bundle):
    assert find_concept(bundle, ["1 2"], ["3 4"], None, no_progress) is None
    with pytest.raises(sj.UserError, match="--concept names 'Files'"):
        find_concept(bundle, ["1 2"], ["3 4"], "Files", no_progress)

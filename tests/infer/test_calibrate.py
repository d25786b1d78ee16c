"""Calibration: expected costs against sums in NumPy, the search for strengths, generated texts, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from steerling_jax.bundle import Bundle
from steerling_jax.cli.main import main
from steerling_jax.concepts.concept import Head
from steerling_jax.errors import UserError
from steerling_jax.evaluation.steering_cost import CostCanvases, cost_canvases, steering_costs
from steerling_jax.infer.calibrate import calibrate as calibrate_module
from steerling_jax.infer.calibrate.calibrate import CalibrationSettings, calibrate, calibrated_catalogue
from steerling_jax.infer.calibrate.check import LEVELS, choose_level, measure_strengths
from steerling_jax.infer.calibrate.curves import GRID, strength_at
from steerling_jax.infer.calibrate.unit_log import UnitLog
from steerling_jax.infer.steer_eval.judge import Judge, train_judge
from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
from steerling_jax.infer.steer_eval.text_specs import AMPLIFY, SUPPRESS, SteerEvalSettings
from steerling_jax.inference import forward
from steerling_jax.io.catalogue import make_catalogue, read_catalogue
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import prepare_steering
from steerling_jax.steering.resolve import suppression
from tests.worlds.steering_world import C, N, make_bundle, make_store

NAMES = [*({"id": i, "name": f"Concept {i}"} for i in range(C)), {"id": 7, "name": "found", "head": "discovered"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return make_store(tmp_path_factory.mktemp("corpus") / "store")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    bundle = make_bundle()
    return dataclasses.replace(bundle, catalogue=make_catalogue(NAMES, bundle.config, "list"))


@pytest.fixture(scope="module")
def judge(store: CorpusStore) -> Judge:
    return train_judge(store, C, [], N)


@pytest.fixture(scope="module")
def held(store: CorpusStore) -> HeldOutChunks:
    return HeldOutChunks.read(store, C)


@pytest.fixture(scope="module")
def canvases(bundle: Bundle, store: CorpusStore) -> CostCanvases:
    texts = [store.tokens(start, start + 32).astype(int).tolist() for start in (0, 200, 400)]
    return cost_canvases(bundle, [(text[:16], text[16:]) for text in texts])


def test_canvases_are_masked_at_the_scored_positions(bundle: Bundle, canvases: CostCanvases):
    mask = bundle.config.mask_token_id
    masked = canvases.tokens == mask
    assert masked[:, 16:32].sum(axis=1).min() >= 8
    assert not masked[:, :16].any()
    assert np.take_along_axis(masked, canvases.scored, axis=1).all()
    assert all(len(set(row)) == 8 for row in canvases.scored.tolist())
    with pytest.raises(UserError, match="equally long, 8 tokens or more"):
        cost_canvases(bundle, [([1], [2] * 7)])


@pytest.mark.parametrize("steering", [SteeringConfig((1,), 1.0), suppression((2,), (2,), 1.0)], ids=["in", "out"])
def test_costs_are_expected_cross_entropies(bundle: Bundle, canvases: CostCanvases, steering: SteeringConfig):
    plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
    found = steering_costs(bundle, canvases, plan, (0.0, 0.5, 2.0))
    assert found[0] == pytest.approx(0, abs=1e-6)
    masked = canvases.tokens == bundle.config.mask_token_id
    injection, alpha = masked[:, :, None] * plan.parts[0].direction, plan.parts[0].alpha
    for scale, cost in zip((0.5, 2.0), found[1:]):
        # The public forward pass, which injects at masked positions after the layers from `inject_layer` on.
        logits = [
            np.asarray(forward(bundle, canvases.tokens, injection=injection, inject_layer=1, inject_alpha=a).logits)
            for a in (0.0, scale * alpha)
        ]
        logits[1] = logits[1] - scale * np.asarray(plan.suppression)
        rows = [np.take_along_axis(one, canvases.scored[:, :, None], axis=1) for one in logits]
        p, q = (np.asarray(jax.nn.softmax(one), np.float64) for one in rows)
        assert cost == pytest.approx(((q - p) * -np.log(p)).sum(axis=-1).mean(), rel=1e-3, abs=1e-5)
        assert cost != 0


def test_strengths_between_those_of_the_grid():
    grid = np.array(GRID[AMPLIFY])
    square = (grid**2).tolist()
    for level in (0.04, 0.5, 3.0, 0.0025):  # the last is below the smallest strength
        assert strength_at(AMPLIFY, square, level) == pytest.approx(level**0.5)
    assert strength_at(AMPLIFY, square, 1e6) == pytest.approx(grid[-1])
    noisy = [-0.01, 0.3, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0]
    assert strength_at(AMPLIFY, noisy, 0.25) < grid[1]  # not at the third, which only looks cheap


def test_the_level_is_where_texts_cost_the_limit():
    def costs(*values: float) -> list[dict[str, float]]:
        return [{"cost": value} for value in values]

    assert choose_level(costs(0.02, 0.05, 0.3, 0.9), 0.3) == pytest.approx(LEVELS[2])
    assert LEVELS[1] < choose_level(costs(0.02, 0.05, 0.4, 0.9), 0.3) < LEVELS[2]
    assert choose_level(costs(0.6, 0.7, 0.9, 1.0), 0.3) == pytest.approx(LEVELS[0] / 2)
    assert choose_level(costs(0.0, -0.1, 0.1, 0.2), 0.3) == LEVELS[-1]
    assert choose_level(costs(0.02, 0.5, 0.1, 0.9), 0.3) < LEVELS[1]
    assert choose_level([{"cost": None}] * 4, 0.2) == 0.2


def test_texts_at_strengths_are_measured_as_steer_eval_does(bundle: Bundle, judge: Judge, held: HeldOutChunks):
    settings = SteerEvalSettings((), 2, N, 0)
    weak, strong, random = (
        measure_strengths(bundle, judge, held, AMPLIFY, {1: (1e-6, 40.0)}, settings)
        + measure_strengths(bundle, judge, held, AMPLIFY, {1: (40.0,)}, settings, control=True)[1:]
    )
    assert weak["cost"] == pytest.approx(0, abs=1e-3)  # the same prompts and seeds: the same texts
    assert strong["cost"] != weak["cost"]
    assert (weak["texts"], random["condition"]) == (2, "random direction")
    assert weak["found"] == weak["found_without"]
    (held_down,) = measure_strengths(bundle, judge, held, SUPPRESS, {1: (3.0,)}, settings)
    assert "still_found" in held_down


def test_an_interrupted_calibration_continues(
    bundle: Bundle, judge: Judge, held: HeldOutChunks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = CalibrationSettings(panel=1, samples=1, canvases=4, new_tokens=N)
    concepts: list[tuple[Head, int]] = [("known", 0), ("known", 3), ("discovered", 7)]
    done: list[str] = []

    def fake(bundle, judge, held, action, strengths, texts, **options):
        done.append(f"{action} {texts.seed}")
        if len(done) == 2:
            raise KeyboardInterrupt
        assert all(0 < one <= GRID[action][-1] for row in strengths.values() for one in row)
        return [{"cost": 0.1 * (i + 1), "texts": 1} for i in range(len(next(iter(strengths.values()))))]

    monkeypatch.setattr(calibrate_module, "measure_strengths", fake)

    def run():
        log = UnitLog(tmp_path / "units", {"seed": 0})
        return calibrate(bundle, judge, held, concepts, settings, remember=log)

    with pytest.raises(KeyboardInterrupt):
        run()
    (tmp_path / "units").write_text((tmp_path / "units").read_text() + '{"unit": "cut o')
    monkeypatch.setattr(calibrate_module, "cost_curve", None)  # all of them are kept
    result = run()
    assert done == ["amplify 0", "amplify 1", "amplify 1", "suppress 0", "suppress 1"]
    assert set(result.strengths[AMPLIFY]) == set(concepts)
    catalogue = calibrated_catalogue(bundle.concepts, result)
    assert catalogue.get(7, "discovered").amplify == result.strengths[AMPLIFY]["discovered", 7]
    assert catalogue.get(3).suppress == result.strengths[SUPPRESS]["known", 3]
    known = [strength for (head, _), strength in result.strengths[SUPPRESS].items() if head == "known"]
    assert result.strengths[SUPPRESS]["discovered", 7] <= max(known)
    assert catalogue.get(1).amplify is None
    with pytest.raises(TypeError):  # other settings begin anew
        calibrate(
            bundle,
            judge,
            held,
            concepts,
            settings,
            remember=UnitLog(tmp_path / "units", {"seed": 1}),
        )


@pytest.mark.slow
def test_command(bundle: Bundle, store: CorpusStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("steerling_jax.load", lambda _: bundle)
    out, defaults = tmp_path / "concepts.json", tmp_path / "steering.json"
    line = ["calibrate", "--corpus", str(store.folder), "--out", str(out), "--defaults", str(defaults)]
    line += ["--panel", "2", "--samples", "1", "--canvases", "4"]
    assert main([*line, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    catalogue = read_catalogue(out, bundle.config)
    assert len(report["concepts"]) == C + 1
    for one in report["concepts"]:
        entry = catalogue.get(one["id"], one["head"])
        assert (entry.name, entry.amplify, entry.suppress) == (one["name"], one["amplify"], one["suppress"])
    assert json.loads(defaults.read_text()) == report["defaults"]
    assert [one["condition"] for one in report["measured"]["amplify"]] == ["concept", "random direction"]
    assert not (tmp_path / "concepts.json.units").exists()
    assert main([*line[:-6], "--out", "/dev/null"]) == 2
    assert "--out is not a regular file" in capsys.readouterr().err

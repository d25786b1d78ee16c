"""`steerling attach`: what it makes, that a killed run gives the same, and what `steerling features` shows of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.cli.main import main
from steerling_jax.train.attach.hidden_rows import capture_rows, text_windows
from steerling_jax.train.attach.run_config import AttachRun
from tests.worlds.serving_world import SAMPLE
from tests.worlds.signalled_command import signalled_command

STEPS, KL_STEPS, K = 30, 60, 6


@pytest.fixture(scope="module")
def options(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run on the served tests' model of width 32."""
    text = tmp_path_factory.mktemp("attach") / "text.txt"
    text.write_text("".join(SAMPLE) * 4)
    numbers = {"k": K, "latents": 128, "steps": STEPS, "kl-steps": KL_STEPS, "seq-len": 32, "held-out": 512,
               "checkpoint-every": 40}  # fmt: skip
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return ["attach", str(text_model), "--text", str(text), *words, "--json"]


@pytest.fixture(scope="module")
def whole(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run that nobody interrupted, and its result."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = attach(options, out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def attach(options: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "steerling_jax.cli.main", *options, "--out", str(out)]
    return subprocess.run(line, capture_output=True, text=True)


def test_what_a_run_gives(whole: tuple[Path, dict]):
    out, result = whole
    figures = result["evaluation"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}
    assert steps[STEPS]["unexplained"] < 0.9 * steps[1]["unexplained"]
    # The second stage minimises the divergence, which the first one does not report.
    assert "output_loss" not in steps[STEPS]
    assert steps[STEPS + KL_STEPS]["output_loss"] < steps[STEPS + 10]["output_loss"]
    assert 0 < figures["divergence_nats"] < steps[STEPS + 10]["output_loss"]
    np.testing.assert_allclose(figures["cost_nats"], figures["loss_bottleneck"] - figures["loss_model"])
    assert 0 < figures["l0"] <= K
    bundle = sj.load(result["export"])
    parts = sj.feature_contributions(bundle, "The quick brown fox", reference="model")
    assert parts.features.shape[1] == K
    assert float(parts.error.max()) < 1e-4
    # The captured rows are large, and of no use once the run has finished.
    assert not (out / "hidden").exists()


def test_killed_and_continued_it_is_the_same(whole: tuple[Path, dict], options: list[str], tmp_path: Path):
    """Killed while it writes its second file of rows, and when the checkpoint of the second stage becomes valid."""
    out = tmp_path / "run"
    for number, pattern in ((2, r"hidden/\d+\.npz$"), (1, r"checkpoints/80$")):
        line = [*signalled_command(signal.SIGKILL, number, pattern), *options, "--out", str(out)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = attach(options, out)
    assert done.returncode == 0, done.stderr
    for name in ("sae.safetensors", "cfg.json"):
        assert (out / "export" / name).read_bytes() == (whole[0] / "export" / name).read_bytes()


def test_the_text_comes_apart_in_the_terminal_and_as_json(whole: tuple[Path, dict], capsys: pytest.CaptureFixture):
    model = str(whole[1]["export"])
    assert main(["features", "The quick brown fox", "--model", model]) == 0
    assert f"at most {K} features" in capsys.readouterr().out
    assert main(["features", "The quick", "--model", model, "--json", "--reference", "raw"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for token in printed["tokens"]:
        assert 1 <= len(token["features"]) <= K
        total = sum(part["contribution"] for part in token["features"]) + token["bias"]
        assert abs(total - token["logit"]) < 1e-3
    assert any(printed["promoted"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--k", "129"], "k is 129, but there are only 128 latents"),
        (["--held-out", "64"], "held_out"),
        (["--held-out", "9000000"], "add texts, or lower these"),
        (["--text", "/nowhere.txt"], "/nowhere.txt"),
    ],
)
def test_bad_options_are_refused_and_write_nothing(
    options: list[str], changes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main([*options, "--out", str(tmp_path / "run"), *changes]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_options_for_the_same_folder_are_refused(
    whole: tuple[Path, dict], options: list[str], capsys: pytest.CaptureFixture
):
    assert main([*options, "--out", str(whole[0]), "--k", "7"]) == 2
    assert "k is 7, was 6" in " ".join(capsys.readouterr().err.split())
    assert main(["attach", str(whole[1]["export"]), "--out", str(whole[0])]) == 2
    assert "has a bottleneck already" in " ".join(capsys.readouterr().err.split())


def test_rows_with_nan_are_refused(text_model: Path, tmp_path: Path):
    bundle = sj.load(text_model)
    bundle.params["ln_f"]["weight"] = bundle.params["ln_f"]["weight"].at[3].set(np.nan)
    recipe = AutoencoderRecipe(n_latents=64, k=4, steps=2, batch_rows=64)
    run = AttachRun(model="", reconstruct=recipe, match=recipe, seq_len=32, windows=4)
    tokens = np.random.default_rng(0).integers(0, 300, 256, dtype=np.int32)
    with pytest.raises(sj.UserError, match="contain NaN"):
        capture_rows(run, bundle, tokens, tmp_path)
    # Of a diffusion model, only masked positions are predicted, and only they count.
    windows = text_windows(run, bundle, tokens)
    np.testing.assert_array_equal(windows.counted, windows.tokens == bundle.config.mask_token_id)

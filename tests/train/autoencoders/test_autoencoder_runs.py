"""`steerling train` with a config of autoencoders: real processes, killed and continued, and what they write."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import steerling_jax as sj
from steerling_jax.autoencoders.metrics import loss_with_output
from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.cli.main import main
from steerling_jax.train.autoencoders.activations import Activations, mask_windows
from steerling_jax.train.autoencoders.evaluate import evaluate
from steerling_jax.train.autoencoders.layers import check_sizes
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from tests.worlds.ports import lasting_port
from tests.worlds.serving_world import PATIENCE, SAMPLE
from tests.worlds.signalled_command import signalled_command

STEPS = 24
PROGRAM = (sys.executable, "-m", "steerling_jax.cli.main")


@pytest.fixture(scope="module")
def config_file(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the served tests' model: one layer of width 32."""
    folder = tmp_path_factory.mktemp("sae")
    (folder / "text.txt").write_text("".join(SAMPLE) * 3)
    path = folder / "sae_small.py"
    path.write_text(f"""
from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

def config():
    return AutoencoderRun(
        name="sae_small", model={str(text_model)!r}, layers=(0,), texts=({str(folder / "text.txt")!r},),
        recipe=AutoencoderRecipe(n_latents=64, k=4, steps={STEPS}, batch_rows=64, learning_rate=3e-3, dead_after=500),
        seq_len=32, windows=4, buffer_rows=256, held_out=256, log_every=1, checkpoint_every=4,
    )
""")
    return path


def train(config: Path, out: Path, *options: str, program: Sequence[str] = PROGRAM) -> subprocess.Popen[str]:
    line = [*program, "train", "--config", str(config), "--out", str(out)]
    return subprocess.Popen([*line, "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_at(number: int) -> list[str]:
    """The words that start `steerling` in a process that is killed when its `number`-th checkpoint is about to get its
    name."""
    return signalled_command(signal.SIGKILL, number, r"/checkpoints/\d+$")


def wait_until_killed(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, errors


@pytest.fixture(scope="module")
def whole(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run that nobody interrupted, and its result."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = train(config_file, out)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return out, json.loads(printed)


def test_what_a_run_gives(whole: tuple[Path, dict]):
    out, result = whole
    figures = result["evaluation"]["layer0"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["layer0/unexplained"] < 0.9 * steps[0]["layer0/unexplained"]
    assert 0 < figures["unexplained"] < 1
    assert 0 < figures["l0"] <= 4
    assert set(figures["losses"]) == {"model", "reconstructed", "zero", "mean"}
    assert sum(figures["density_histogram"]) == 64
    autoencoder = sj.load_autoencoder(out / "export")
    assert (autoencoder.layer, autoencoder.k, autoencoder.n_latents) == (0, 4, 64)
    # Densities and largest latents of the features, in whose units a model is steered by them.
    assert [one.id for one in autoencoder.features] == list(range(64))
    active = [one for one in autoencoder.features if one.largest]
    assert len(active) == round(64 * (1 - figures["dead"]))
    assert sum(one.density or 0 for one in active) == pytest.approx(figures["l0"], rel=1e-3)
    picture = (out / "training.svg").read_text()
    assert result["picture"] == str(out / "training.svg")
    for title in ("unexplained variance", "dead latents", "latents by density", "loss recovered", "L0"):
        assert title in picture


def test_killed_and_continued_it_is_the_same(whole: tuple[Path, dict], config_file: Path, tmp_path: Path):
    out = tmp_path / "run"
    for number in (2, 3):
        wait_until_killed(train(config_file, out, program=killed_at(number)))
        assert complete(out)
    process = train(config_file, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    ours, theirs = (folder / "export" / "layers.0" / "sae.safetensors" for folder in (out, whole[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_on_a_mesh_is_killed_continued_and_gives_the_same(
    whole: tuple[Path, dict], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Four devices, latents over two and rows over two; rounding differs, so figures are compared."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    on_mesh = tmp_path / "sae_mesh.py"
    imported = "from steerling_jax.parallel.sharding import MeshShape\n" + config_file.read_text()
    on_mesh.write_text(imported.replace("windows=4,", "windows=4, mesh=MeshShape(data=2, fsdp=1, tensor=2),"))
    wait_until_killed(train(on_mesh, tmp_path / "run", program=killed_at(2)))
    assert complete(tmp_path / "run")
    process = train(on_mesh, tmp_path / "run")
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    ours, theirs = json.loads(printed)["evaluation"]["layer0"], whole[1]["evaluation"]["layer0"]
    for name in ("unexplained", "l0", "loss_recovered_against_mean"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.02), name
    assert sj.load_autoencoder(tmp_path / "run" / "export").n_latents == 64


@pytest.mark.slow
def test_two_processes_are_killed_continued_and_give_the_same(
    whole: tuple[Path, dict], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two processes of two devices: latents over two devices of a process, rows over the processes."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    imported = "from steerling_jax.parallel.sharding import MeshShape\n" + config_file.read_text()
    on_mesh, out = tmp_path / "sae_pod.py", tmp_path / "run"
    on_mesh.write_text(imported.replace("windows=4,", "windows=4, mesh=MeshShape(data=2, fsdp=1, tensor=2),"))

    def start(first: Sequence[str] = PROGRAM) -> list[subprocess.Popen[str]]:
        address = ["--coordinator", f"127.0.0.1:{lasting_port()}", "--process-count", "2"]
        words = [[*address, "--process-index", str(number)] for number in range(2)]
        return [train(on_mesh, out, *words[0], program=first), train(on_mesh, out, *words[1])]

    killed, waiting = start(killed_at(2))
    wait_until_killed(killed)
    assert complete(out)
    waiting.kill()
    waiting.communicate()
    processes = start()
    printed, errors = zip(*(process.communicate(timeout=PATIENCE) for process in processes), strict=True)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "Resuming from step" in errors[0]
    assert "evaluation" not in printed[1], "one process prints the result"
    result = printed[0][printed[0].index("{") :]  # after the lines of the library that connects the processes
    ours, theirs = json.loads(result)["evaluation"]["layer0"], whole[1]["evaluation"]["layer0"]
    for name in ("unexplained", "l0", "loss_recovered_against_mean"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.02), name
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"step"' in line]
    assert steps == [*range(1, STEPS + 1), STEPS]
    assert sj.load_autoencoder(out / "export").n_latents == 64


def complete(out: Path) -> list[str]:
    folder = out / "checkpoints"
    return [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def test_a_signal_saves_and_stops(config_file: Path, tmp_path: Path):
    process = train(config_file, tmp_path / "run", "--steps", "100000")
    while not complete(tmp_path / "run") and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(printed)["stopped"] is True


def small_run(k: int) -> AutoencoderRun:
    """A run in this process, on a model that the test gives it."""
    return AutoencoderRun(
        name="small",
        model="",
        layers=(0,),
        recipe=AutoencoderRecipe(n_latents=64, k=k, steps=9, batch_rows=64),
        seq_len=32,
        windows=4,
        buffer_rows=256,
    )


def test_rows_are_those_of_the_model_in_another_order(text_model: Path):
    """Each row of a buffer is a hidden row of one of the windows, each once; another step's buffer has others."""
    bundle = sj.load(text_model)
    tokens = np.random.default_rng(0).integers(0, 300, 8 * 32, dtype=np.int32)
    run = small_run(k=4)
    activations = Activations(run, bundle, tokens)
    buffer = np.concatenate([activations.batch(step)[0] for step in range(4)])
    windows = mask_windows(bundle, tokens.reshape(8, 32), [0, 1, 0])
    # A buffer holds all eight windows, in the order of the first epoch.
    order = np.random.default_rng([0, 0, 0]).permutation(8)
    masked = mask_windows(bundle, tokens.reshape(8, 32)[order], [0, 1, 0])
    assert (masked == bundle.config.mask_token_id).any()
    assert not (windows == tokens.reshape(8, 32)).all()
    expected = sj.hidden_states(bundle, masked, layers=[0])[0].reshape(-1, 32)
    by_row = lambda rows: rows[np.lexsort(rows.T)]  # noqa: E731
    np.testing.assert_allclose(by_row(buffer), by_row(expected), atol=1e-5)
    assert np.abs(buffer - expected).max() > 0.1
    assert np.abs(np.concatenate([activations.batch(step)[0] for step in range(4, 8)]) - buffer).max() > 0.1
    np.testing.assert_array_equal(activations.batch(2)[0], buffer[128:192])


def test_rows_of_a_buffer_are_used_again_in_another_order(text_model: Path):
    bundle = sj.load(text_model)
    tokens = np.random.default_rng(0).integers(0, 300, 16 * 32, dtype=np.int32)
    run = dataclasses.replace(small_run(k=4), visits=3)
    once, thrice = Activations(small_run(k=4), bundle, tokens), Activations(run, bundle, tokens)
    visits = [np.stack([thrice.batch(4 * visit + step)[0] for step in range(4)]) for visit in range(4)]
    np.testing.assert_array_equal(visits[0], np.stack([once.batch(step)[0] for step in range(4)]))
    by_row = lambda rows: rows.reshape(-1, 32)[np.lexsort(rows.reshape(-1, 32).T)]  # noqa: E731
    for first, second in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_array_equal(by_row(visits[first]), by_row(visits[second]))
        # Not only the batches' order differs.
        assert not (by_row(visits[first][0]) == by_row(visits[second][0])).all()
    # Then the next buffer, which has other windows.
    np.testing.assert_array_equal(visits[3], np.stack([once.batch(step)[0] for step in range(4, 8)]))


def test_an_exact_autoencoder_recovers_the_whole_loss(text_model: Path):
    bundle = sj.load(text_model)
    both = np.concatenate([np.eye(32), -np.eye(32)]).astype(np.float32)
    exact = sj.Autoencoder(
        Weights(jnp.asarray(both.T), jnp.asarray(both), jnp.zeros(64), jnp.zeros(32), settings=Settings(k=32)), layer=0
    )
    run = small_run(k=32)
    tokens = np.random.default_rng(1).integers(0, 300, 256, dtype=np.int32)
    figures = evaluate(run, bundle, {0: exact}, {0: np.inf}, tokens)["layer0"]
    assert figures["unexplained"] < 1e-8
    np.testing.assert_allclose(figures["loss_recovered_against_zero"], 1.0, atol=1e-4)
    np.testing.assert_allclose(figures["losses"]["reconstructed"], figures["losses"]["model"], rtol=1e-5)
    # With no row that counts, the model keeps all of its outputs.
    seen = mask_windows(bundle, tokens.reshape(8, 32), [0, 3])
    total = loss_with_output(
        bundle.params,
        jnp.asarray(seen),
        jnp.asarray(tokens.reshape(8, 32)),
        jnp.asarray(seen != tokens.reshape(8, 32), jnp.float32),
        jnp.zeros((8, 32, 32)),
        jnp.int32(0),
        backbone=bundle.backbone,
    )
    np.testing.assert_allclose(figures["losses"]["model"], total / (seen != tokens.reshape(8, 32)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "(1,)"}, "blocks of .* are 0 to 0"),
        ({"layers": "()"}, "layers is empty"),
        ({"layers": "(0, 0)"}, "names a block twice"),
        ({"buffer_rows": "100"}, "buffer_rows is 100"),
        ({"log_every": "1, visits=0"}, "visits is 0, but it must be at least 1"),
        ({"held_out": "1_000_000"}, "needs at least 1,000,032"),
        ({"texts": "('/nowhere/at/all.txt',)"}, "/nowhere/at/all.txt"),
    ],
)
def test_refusals(changes: dict, message: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    text = config_file.read_text()
    for name, value in changes.items():
        start = text.index(f"{name}=")
        end = start + (text[start:].index("),") + 1 if name in ("layers", "texts") else text[start:].index(","))
        text = text[:start] + f"{name}={value}" + text[end:]
    path = tmp_path / "sae_bad.py"
    path.write_text(text)
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert re.search(message, errors), errors
    # The mended config can use the same folder.
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_of_before_visits_is_continued(whole: tuple[Path, dict], config_file: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    saved = json.loads((out / "run.json").read_text())
    del saved["run"]["visits"]
    (out / "run.json").write_text(json.dumps(saved))
    process = train(config_file, out)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(printed)["step"] == STEPS


def test_another_config_is_refused(
    whole: tuple[Path, dict], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / "sae_small.py"
    path.write_text(config_file.read_text().replace("k=4", "k=5"))
    assert main(["train", "--config", str(path), "--out", str(whole[0])]) == 2
    assert "recipe.k is 5, was 4" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--config", str(config_file), "--out", str(whole[0]), "--text", "/other.txt"]) == 2
    assert 'texts is ["/other.txt"], was' in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--config", "tiny", "--out", str(tmp_path / "tiny"), "--text", "/other.txt"]) == 2
    assert "--text does not apply to the config 'tiny'" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--config", str(config_file), "--corpus", str(tmp_path)]) == 2
    assert "--corpus does not apply" in " ".join(capsys.readouterr().err.split())
    assert main(["compile", "--config", str(config_file), "--topology", "v5e:2x2"]) == 2
    assert "trains autoencoders" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "batch_rows is 64, but the mesh shards it over 3 devices; give a multiple of 3"),
        ((2, 3, 1), "batch_rows is 64, but the mesh shards it over 6 devices"),
        ((1, 1, 5), "n_latents is 64, but the mesh shards it over 5 devices"),
    ],
)
def test_sizes_that_a_mesh_cannot_share_out_are_refused(sizes: tuple[int, int, int], message: str):
    axes = ("data", "fsdp", "tensor")
    check_sizes(small_run(k=4), AbstractMesh((4, 2, 8), axes))
    with pytest.raises(sj.UserError, match=message):
        check_sizes(small_run(k=4), AbstractMesh(sizes, axes))

"""Published layout to checkpoint and back: as functions, as real processes, and from a training run's checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints import parameters as checkpoint
from steerling_jax.io.hub import bundled_models
from steerling_jax.io.tokenizers.load import vocabulary_file
from steerling_jax.io.weights.published_layout import SINGLE, companion_files, find_tensors, read_config
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.io.weights.safetensors_format import same_bytes
from steerling_jax.loading import load
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import config_to_dict
from tests.worlds.progress_lines import without_progress

FAMILIES = sorted(path.parent.name for path in (Path(__file__).parents[1] / "golden").glob("*/config.json"))


def steerling(*args: str | Path, prefix: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "steerling_jax.cli.main", *map(str, args)]
    if prefix:
        line = ["bash", "-c", f'{prefix}; exec "$@"', "bash", *line]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


def same_tensors(a: Path, b: Path) -> bool:
    ours, theirs = find_tensors(a), find_tensors(b)
    return ours.keys() == theirs.keys() and all(same_bytes(ours[name], theirs[name]) for name in ours)


def one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(golden: Path, tmp_path: Path, family: str):
    config, params, extras = read_published(golden / family)
    checkpoint.save_params_checkpoint(tmp_path / "ck", config, params, layout=extras.layout, carried=extras.carried)
    info = checkpoint.read_run_info(tmp_path / "ck")
    assert (info.kind, info.config, info.layout, info.carried) == ("weights", config, extras.layout, extras.carried)
    again, loaded = checkpoint.load_checkpoint_params(tmp_path / "ck")
    assert isinstance(again, ModelConfig)
    write_published(tmp_path / "out", again, loaded, layout=info.layout, carried=info.carried)
    assert same_tensors(golden / family, tmp_path / "out")


def test_hidden_files_beside_a_model_are_not_read(text_model: Path, tmp_path: Path):
    """macOS puts a binary `._NAME` beside each file that it copies."""
    folder = tmp_path / "model"
    shutil.copytree(text_model, folder)
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "._a.tiktoken").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "._a.vocab").write_bytes(b"\x00\x05\x16\x07\xff")
    assert vocabulary_file(folder) == folder / "tokenizer.model"
    (folder / "tokenizer.model").unlink()
    assert vocabulary_file(folder) is None
    assert not [path for path in companion_files(folder) if path.name.startswith(".")]


@pytest.mark.parametrize(("family", "options"), [("base", ["--layout", "hub"]), ("hub_layout", [])])
def test_commands_there_and_back(golden: Path, tmp_path: Path, family: str, options: list[str]):
    shutil.copytree(golden / family, tmp_path / "in")
    (tmp_path / "in/concepts.json").write_text("[]")
    done = steerling("import", tmp_path / "in", tmp_path / "ck", "--json")
    assert done.returncode == 0, done.stderr
    assert without_progress(done.stderr) == ""
    assert json.loads(done.stdout)["config"]["n_embd"] == 64
    done = steerling("export", tmp_path / "ck", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert same_tensors(golden / family, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", SINGLE, "concepts.json"}
    before, after = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("in", "out"))
    assert after["model_type"] == "steerling"
    assert family == "base" or before.items() <= after.items()
    assert read_config(tmp_path / "out")[0] == read_config(golden / family)[0]


def test_command_exports_in_bfloat16_and_shards(golden: Path, tmp_path: Path):
    config, params, extras = read_published(golden / "hub_layout")
    checkpoint.save_params_checkpoint(tmp_path / "ck", config, params, layout="hub", carried=extras.carried)
    options = ["--dtype", "bfloat16", "--max-shard-size", "200KB", "--layout"]
    for layout in ("hub", "package"):
        done = steerling("export", tmp_path / "ck", tmp_path / layout, *options, layout)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / layout).glob("model-*.safetensors"))) > 1
        again, low, extras = read_published(tmp_path / layout)
        assert (again, extras.dtype, extras.layout) == (config, "bfloat16", layout)
        assert extras.carried.get("torch_dtype") == {"hub": "bfloat16", "package": None}[layout]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), low, params)


def test_checkpoint_in_another_type_and_sharding(golden: Path, tmp_path: Path):
    config, params, _ = read_published(golden / "base")
    checkpoint.save_params_checkpoint(tmp_path / "ck", config, params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, low = checkpoint.load_checkpoint_params(tmp_path / "ck", dtype="bfloat16", sharding=lambda path: here)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), low, params)


@pytest.fixture
def training_run(golden: Path, tmp_path: Path) -> Path:
    """A training run's folder with the steps 10 and 20, as `checkpoints/training.py` lays it out."""
    config, params, _ = read_published(golden / "base")
    run = {"kind": "training", "format_version": checkpoint.FORMAT_VERSION, "model": config_to_dict(config)}
    run |= {"run": {}, "corpus": {}}
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    with ocp.training.Checkpointer(str(folder / "checkpoints")) as checkpointer:
        for step in (10, 20):
            tree = jax.tree.map(lambda leaf, step=step: leaf * step, params)
            state = {"params": tree, "opt_state": (jnp.ones(3), {"m": tree}), "step": jnp.int32(step)}
            checkpointer.save_checkpointables(step, {"state": state})
    return folder


@pytest.mark.parametrize(("step", "scale"), [(None, 20), (10, 10)])
def test_parameters_of_a_training_run(golden: Path, training_run: Path, step: int | None, scale: int):
    config, params = checkpoint.load_checkpoint_params(training_run, step=step)
    plain_config, plain, _ = read_published(golden / "base")
    assert config == plain_config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * scale), params, plain)


def test_one_step_of_a_run_is_a_model(
    golden: Path, training_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step, plain = training_run / "checkpoints" / "10", read_published(golden / "base")[1]
    done = steerling("export", step, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * 10), read_published(tmp_path / "out")[1], plain)
    monkeypatch.chdir(training_run / "checkpoints")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * 10), load("10").params, plain)
    done = steerling("export", step, tmp_path / "again", "--step", "20")
    assert done.stderr == f"error: --step is 20, but {step} is one step; give the run's folder, or no --step.\n"


def test_a_bundled_model_is_exported_by_its_name(tmp_path: Path):
    done = steerling("export", "steerling-pydocs", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    folder = bundled_models()["steerling-pydocs"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in folder.iterdir()}
    for name in (SINGLE, "steering.json", "concepts.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    done = steerling("export", "steerling-pydocs", tmp_path / "step", "--step", "3")
    assert "--step is 3, but steerling-pydocs is not a training run; leave it out." in done.stderr


def test_steps_that_are_not_there(training_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint of step 15; it has 10, 20"):
        checkpoint.load_checkpoint_params(training_run, step=15)
    shutil.rmtree(training_run / "checkpoints")
    with pytest.raises(UserError, match="no finished checkpoint"):
        checkpoint.load_checkpoint_params(training_run)


def test_damaged_checkpoints(golden: Path, tmp_path: Path):
    config, params, _ = read_published(golden / "base")
    folder = tmp_path / "ck"
    checkpoint.save_params_checkpoint(folder, config, params)
    run = (folder / "run.json").read_text()
    for text, word in {
        "{": "not valid JSON",
        '{"kind": "weights"}': "another version",
        run.replace('"n_embd": 64', '"n_embd": 32').replace('"concept_dim": 64', '"concept_dim": 32'): "another shape",
        run.replace('"n_layers": 4', '"n_layers": 5'): "another shape",
        run.replace('"n_head"', '"n_heads"'): "unknown field",
    }.items():
        (folder / "run.json").write_text(text)
        with pytest.raises(UserError, match=word):
            checkpoint.load_checkpoint_params(folder)
    (folder / "run.json").write_text(run)
    data = next((folder / "params/state/d").iterdir())
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{data.name} has \d+ bytes instead of"):
        checkpoint.load_checkpoint_params(folder)
    data.unlink()
    with pytest.raises(UserError, match=f"{data.name} is missing"):
        checkpoint.load_checkpoint_params(folder)


def test_commands_told_bad_things(golden: Path, tmp_path: Path):
    one_sentence(steerling("import", tmp_path / "nowhere", tmp_path / "ck"), "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text((golden / "base/config.json").read_text())
    (tmp_path / "bad" / SINGLE).write_bytes((golden / "base" / SINGLE).read_bytes()[:9000])
    one_sentence(steerling("import", tmp_path / "bad", tmp_path / "ck"), SINGLE, "truncated")
    one_sentence(steerling("import", golden / "base", tmp_path / "bad"), "exists already")
    one_sentence(steerling("export", tmp_path / "nowhere", tmp_path / "out"), "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
    assert len(list((tmp_path / "bad").iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as a full disk would")
def test_full_disk(golden: Path, tmp_path: Path):
    limit = "ulimit -f 100"  # in KiB: smaller than the weights
    one_sentence(steerling("import", golden / "base", tmp_path / "ck", prefix=limit), "Cannot write", "ck")
    assert list(tmp_path.iterdir()) == []
    config, params, _ = read_published(golden / "base")
    checkpoint.save_params_checkpoint(tmp_path / "ck", config, params)
    one_sentence(steerling("export", tmp_path / "ck", tmp_path / "out", prefix=limit), "Cannot write", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]

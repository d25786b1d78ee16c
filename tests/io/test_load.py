"""`load`: folders, checkpoints, bundled names and Hub ids; the package's lazy names."""

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

import steerling_jax as sj
from steerling_jax.io import hub
from steerling_jax.io.checkpoints import parameters as checkpoint
from steerling_jax.io.weights.published_reader import read_published


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", code]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, env={**os.environ, **env})


def test_importing_the_package_imports_no_jax():
    done = python("import sys, steerling_jax as sj; dir(sj); sj.UserError; sj.ModelConfig; print('jax' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="laod"):
        _ = sj.laod


def test_a_published_folder(golden: Path):
    bundle = sj.load(golden / "instruct")
    assert isinstance(bundle, sj.Bundle)
    assert bundle.config.eot_id == 294
    assert bundle.tokenizer.special.eot_id == 294
    assert bundle.tokenizer.vocab_size == 300
    assert bundle.concept_names is None
    assert bundle.compute.dtype == "float32"


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "bfloat16"), (None, "float32"), ("float32", "float32")])
def test_types(golden: Path, dtype: str | None, expected: str):
    bundle = sj.load(golden / "base", dtype=dtype, matmul_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(bundle.params)} == {jnp.dtype(expected)}
    assert (bundle.compute.dtype, bundle.compute.operands) == (expected, "bfloat16")
    with pytest.raises(sj.UserError, match="'int8'"):
        sj.load(golden / "base", dtype="int8")


def test_a_checkpoint(golden: Path, tmp_path: Path):
    config, params, extras = read_published(golden / "hub_layout")
    checkpoint.save_params_checkpoint(tmp_path / "ck", config, params, layout=extras.layout, carried=extras.carried)
    bundle = sj.load(tmp_path / "ck")
    assert (bundle.config, bundle.extras) == (config, extras)
    jax.tree.map(np.testing.assert_array_equal, bundle.params, params)


def test_concept_names(golden: Path, tmp_path: Path):
    shutil.copytree(golden / "base", tmp_path / "m")
    concepts = [{"id": 3, "name": "gardens", "group": "places", "description": ""}]
    (tmp_path / "m/concepts.json").write_text(json.dumps(concepts))
    names = sj.load(tmp_path / "m").concept_names
    assert names is not None
    assert (len(names), names[2], names[3]) == (100, "concept 2", "gardens")
    for bad in ({"id": 100, "name": "x"}, {"id": "1", "name": "x"}, {"name": "x"}, 7):
        (tmp_path / "m/concepts.json").write_text(json.dumps([bad]))
        with pytest.raises(sj.UserError, match=r"concepts\.json"):
            sj.load(tmp_path / "m")


def test_bundled_names(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "bundled_models", lambda: {"small-docs": golden / "base"})
    assert hub.resolve("small-docs") == hub.resolve() == golden / "base"
    assert sj.load("small-docs").name == sj.load().name.replace("base", "small-docs") == "small-docs"
    with pytest.raises(sj.UserError, match="did you mean 'small-docs'"):
        hub.resolve("small-dosc")
    for name in ("other", "./org/name", "a/b/c"):
        with pytest.raises(sj.UserError, match="bundled models are: small-docs"):
            hub.resolve(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(sj.UserError, match="is a file"):
        hub.resolve(tmp_path / "file")
    monkeypatch.setattr(hub, "bundled_models", dict)
    with pytest.raises(sj.UserError, match="has no bundled model"):
        hub.resolve()


def test_a_model_in_the_hub_cache_needs_no_connection(golden: Path, tmp_path: Path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub/models--org--tiny"
    shutil.copytree(golden / "base", repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(revision)
    code = "import steerling_jax as sj; print(sj.load('org/tiny').name)"
    done = python(code, HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert done.stdout == "org/tiny\n", done.stderr


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str)
def test_no_connection(tmp_path: Path, env: dict[str, str]):
    line = [sys.executable, "-m", "steerling_jax.cli.main", "import", "org/tiny", str(tmp_path / "ck")]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=600, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), **env}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no folder org/tiny"), done.stderr
    assert "cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ck").exists()


def test_errors_of_the_hub_are_reported(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub import errors

    def raising(error: type[Exception]):
        def snapshot_download(*_args: object, **_options: object) -> str:
            raise error.__new__(error)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    for error, word in {
        errors.GatedRepoError: "is gated",
        errors.RepositoryNotFoundError: "neither a folder nor a model",
        errors.HFValidationError: "neither a folder nor a model",
        errors.LocalEntryNotFoundError: "cannot be reached",
        RuntimeError: r"Could not download org/tiny from the Hub \(RuntimeError\)",
    }.items():
        raising(error)
        with pytest.raises(sj.UserError, match=word):
            hub.resolve("org/tiny")


def test_a_gguf_file_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub
    from huggingface_hub import errors

    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    requests = []

    def download(repo: str, name: str) -> str:
        requests.append((repo, name))
        if name != "q4/x.gguf":
            raise errors.EntryNotFoundError.__new__(errors.EntryNotFoundError)
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.resolve("org/tiny/q4/x.gguf", gguf=True) == file
    assert requests == [("org/tiny", "q4/x.gguf")]
    with pytest.raises(sj.UserError, match=r"The Hub model org/tiny has no file y\.gguf"):
        hub.resolve("org/tiny/y.gguf", gguf=True)
    with pytest.raises(sj.UserError, match="no folder and no bundled model"):
        hub.resolve("org/tiny/q4/x.gguf")

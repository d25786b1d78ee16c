"""Programs compiled by the TPU compiler, without a TPU. Skipped where it is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steerling_jax.train.aot.compiler import compiler_version
from tests.worlds.training_world import CONFIG


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


EVALUATION = """
import dataclasses, sys
from steerling_jax.train.compile_command import for_compiling_only
for_compiling_only()  # or one process at a time could load the compiler, which other tests do, too
import jax, jax.numpy as jnp
from steerling_jax.models.compute import Compute
from steerling_jax.evaluation.bound import likelihood_sums, presence_evidence
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.aot.chips import topology_devices
from steerling_jax.train.aot.target import mesh_for
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.step import abstract_state

run = load_config(sys.argv[1])
run = dataclasses.replace(run, model=dataclasses.replace(run.model, block_size=128))
mesh = mesh_for(MeshShape(fsdp=2, tensor=2), topology_devices("v5e:2x2"))
params, compute = abstract_state(run, mesh).params, Compute(attention="splash")
key, ids = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((1, 128), jnp.int32)
valid, level = jax.ShapeDtypeStruct((1, 128), bool), jax.ShapeDtypeStruct((), jnp.float32)
settings = {"config": run.model, "compute": compute}
with jax.set_mesh(mesh):
    for lowered in (likelihood_sums.lower(params, ids, valid, key, **settings),
                    presence_evidence.lower(params, ids, ids, level, key, chunks=4, **settings)):
        assert "tpu_custom_call" in lowered.compile().as_text()
"""


@pytest.mark.skipif(compiler_version() is None, reason="needs the TPU compiler, which `make test` has on Linux")
def test_evaluation_compiles_for_several_chips(config_file: Path) -> None:
    """With the splash kernel, whose operands must be sharded explicitly."""
    done = subprocess.run(
        [sys.executable, "-c", EVALUATION, str(config_file)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


SCRIPT = """
import sys
from steerling_jax.cli.main import main
for more in (["--mesh", "fsdp=2,tensor=2"], ["--mode", "decode", "--rows", "2", "--mesh", "tensor=2,data=2"],
             ["--mode", "attribute", "--rows", "4"]):
    code = main(["compile", "--config", sys.argv[1], "--topology", "v5e:2x2", "--json", *more])
    if code:
        sys.exit(code)
"""


@pytest.mark.skipif(compiler_version() is None, reason="needs the TPU compiler, which `make test` has on Linux")
def test_a_small_model_compiles_for_a_tpu(config_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(config_file)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    decoder, text = json.JSONDecoder(), done.stdout
    reports = []
    while text.strip():
        body, end = decoder.raw_decode(text.lstrip())
        reports.append(body)
        text = text.lstrip()[end:]
    assert [body["mode"] for body in reports] == ["train", "decode", "attribute"]
    for body in reports:
        assert body["fits"]
        assert body["devices"] == 4
        assert 0 < body["memory"]["peak"] < 2**30
        assert body["work_over_model"] > 0.9
    assert {"all-gather", "all-reduce"} <= set(reports[0]["costs"]["collectives"])

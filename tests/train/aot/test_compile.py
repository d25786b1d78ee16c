"""`steerling compile`: what it refuses, what it reads from the compiler, what it adds up, and a real TPU target."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from steerling_jax.cli.console import plain
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.aot import chips, matrix
from steerling_jax.train.aot.chips import CHIPS, chip_of, device_count
from steerling_jax.train.aot.estimate import Work, estimate
from steerling_jax.train.aot.hlo import Costs, Traffic
from steerling_jax.train.aot.program import Program
from steerling_jax.train.aot.render import as_json, print_report, verdict
from steerling_jax.train.aot.report import Memory, Report, extrapolate, make_report, read_shortage
from steerling_jax.train.aot.tables import tables
from steerling_jax.train.aot.target import Target
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import DataConfig, RunConfig, instruct_ids
from tests.worlds.training_world import CONFIG

# As the compiler words it, one way and another.
TOO_BIG = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.00G of 15.75G "
    "hbm. Exceeded hbm capacity by 4.25G.\n\nTotal hbm usage >= 20.25G:"
)
WAY_TOO_BIG = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (62.75G) exceeds "
    "available HBM (15.75G)."
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config_file: Path) -> RunConfig:
    return load_config(config_file)


@pytest.fixture(scope="module")
def report(run: RunConfig) -> Report:
    """Of a training step, compiled for one CPU."""
    return make_report(Program("train", run), one_cpu())


def one_cpu() -> Target:
    return Target("v5e:1x1", CHIPS["v5e"], make_mesh(MeshShape(), jax.devices()[:1]))


REFUSED = {
    "v9:4x4": "not known",
    "v5e": "not known",
    "v5e:4x4x4": "linked along 2 axes",
    "v5p:4x4": "linked along 3 axes",
    "v5e:4x0": "linked along 2 axes",
    "v5e:2x2 --mode fly": "must be train, decode or attribute",
    "v5e:2x2 --mesh tensor=3": "does not fit 4 devices",
    "v5e:2x2 --mesh width=3": "AXIS one of data",
    "v5e:2x2 --mesh tensor=wide": "AXIS=N",
    "v5e:2x2 --rows 0": "--rows is 0, but it must be a whole number of at least 1",
    "v5e:2x2 --slices 0": "--slices is 0, but it must be a whole number of at least 1",
    "v5e:2x2 --batch-size -4": "--batch-size is -4, but it must be a whole number of at least 1",
    "v5e:2x2 --layers 0": "--layers is 0, but it must be a whole number of at least 1",
}


@pytest.mark.parametrize("options", REFUSED)
def test_bad_input_is_one_sentence(options: str, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compile", "--config", str(config_file), "--topology", *options.split()])
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert REFUSED[options] in said
    assert len(said.splitlines()) == 1


def test_without_the_compiler(config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(chips, "distributions", lambda **_: [])
    assert main(["compile", "--config", str(config_file), "--topology", "v5e:2x2"]) == 2
    assert "pip install 'steerling-jax[tpu]'" in capsys.readouterr().err


def test_devices_of_a_topology() -> None:
    assert device_count("v5e:16x16", slices=2) == 512
    assert device_count("tpu7x:4x4x4") == 128  # a chip is two devices
    assert chip_of("v5p:4x4x8").flops == 459e12


def test_shortage_is_read_from_the_compilers_message() -> None:
    short = read_shortage(TOO_BIG)
    assert (short.needed, short.available, short.missing) == (20 * 2**30, 15.75 * 2**30, 4.25 * 2**30)
    assert read_shortage(WAY_TOO_BIG).missing == 47 * 2**30
    with pytest.raises(UserError, match="UNIMPLEMENTED: no such thing"):
        read_shortage("UNIMPLEMENTED: no such thing\nand more")


def test_a_program_that_does_not_fit_says_by_how_much(report: Report) -> None:
    short = dataclasses.replace(report, memory=None, costs=None, estimate=None, shortage=read_shortage(TOO_BIG))
    assert not short.fits
    assert "20.00 GiB of 15.75 GiB a device, 4.25 GiB too much" in verdict(short)
    assert as_json(short)["work_over_model"] is None
    print_report(short)


def test_report_of_a_training_step(report: Report, run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.fits
    assert report.memory is not None
    assert report.costs is not None
    # Weights and two moments, and the batch.
    assert report.memory.arguments > 3 * 4 * report.parameters
    assert report.parameter_bytes == 4 * report.parameters
    assert report.costs.open_loops == 0
    # Every query sees every key here, of which the block-causal half counts; nothing is computed twice.
    assert report.work_over_model is not None
    assert 1.0 < report.work_over_model < 2.0
    body = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert body["fits"] is True
    assert body["model_flops"]["total"] == pytest.approx(report.model_flops.total)
    assert body["estimate"]["bound_by"] in ("compute", "memory", "links", "network")
    print_report(report)
    said = capsys.readouterr().out
    assert "It fits" in said
    assert f"{report.parameters / 1e9:.3f} G" in said


PHASES = {
    "steering": {"objective": SteeringObjective()},
    "adapters": {"lora": LoraConfig(rank=2), "start_from": "somewhere"},
    "instruction": {
        "objective": InstructionObjective(), "data": DataConfig(64, 32, 4, messages="talk.jsonl"), "accumulate": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_steps_of_other_phases_compile(phase: str, run: RunConfig) -> None:
    model = dataclasses.replace(run.model, n_layers=1)
    if phase == "instruction":
        model = dataclasses.replace(model, vocab_size=67, **instruct_ids(67))
    changed = dataclasses.replace(run, model=model, **PHASES[phase])
    found = make_report(Program("train", changed), one_cpu())
    assert found.fits
    assert found.work_over_model is not None
    assert found.work_over_model > 0.9


@pytest.mark.parametrize("mode", ["decode", "attribute"])
def test_inference_programs_compile(mode: Any, run: RunConfig) -> None:
    found = make_report(Program(mode, run, rows=2), one_cpu())
    assert found.costs is not None
    assert found.work_over_model is not None
    assert 0.9 < found.work_over_model < 3.0
    assert found.costs.open_loops >= 1  # of passes


def test_costs_are_extrapolated_linearly_in_depth() -> None:
    def at(layers: int) -> tuple[Memory, Costs]:
        sums = {"all-reduce": Traffic(2 * layers, 10 * layers, 20 * layers, 0)}
        return Memory(100 + 3 * layers, 7, 5, 1, 110 + 3 * layers), Costs(
            50 + 4 * layers, 9 * layers, sums, open_loops=1
        )

    assert extrapolate([at(2), at(4)], (2, 4), 32) == at(32)


def test_estimate() -> None:
    """Half a peak second of products, a quarter of memory, links and network as long."""
    chip = CHIPS["tpu7x"]
    work = Work(
        flops=chip.flops / 2 / 2,
        memory=chip.hbm_rate / 2 / 4,
        sent=chip.link_rate / 2 / 2 + 5.0,
        sent_between=5.0,
        model_flops=chip.flops / 2 / 4,
    )
    found = estimate(work, chip)
    assert (found.compute, found.memory, found.links) == pytest.approx((0.5, 0.25, 1.0))
    assert found.network == pytest.approx(10.0 / chip.network_rate)
    assert (found.overlapped, found.bound_by) == (found.links, "links")
    assert found.share_overlapped == pytest.approx(0.25)
    assert found.share_in_turn == pytest.approx(0.25 / found.in_turn)


def test_matrix_entries_are_commands_that_parse(report: Report) -> None:
    """Every entry's config, topology and mesh go together; the tables take reports of both kinds."""
    listed = matrix.entries()
    names = [entry["name"] for entry in listed]
    assert len(set(names)) == len(names)
    for entry in listed:
        config = load_config(entry["config"])
        devices = device_count(entry["topology"], entry.get("slices", 1))
        if entry.get("mode", "train") == "train":
            assert entry.get("batch-size", config.data.batch_size) % np.prod(config.mesh.sizes(devices)[:2]) == 0
        assert entry.get("like", names[0]) in names
    assert matrix.command(listed[5])[-1] == "--without-concepts"
    short = dataclasses.replace(report, memory=None, costs=None, estimate=None, shortage=read_shortage(TOO_BIG))
    both = [
        {"name": name, "report": {**as_json(one), "date": "2026-01-01"}} for name, one in (("a", report), ("b", short))
    ]
    text = tables(plain(both))
    assert "no: 4.2 too much" in text
    written = matrix.with_tables(f"before {matrix.BEGIN} old {matrix.END} after", text, Path("compile.md"))
    assert written.startswith("before")
    assert written.endswith("after")
    assert "old" not in written
    with pytest.raises(UserError, match="put them around the place of the tables"):
        matrix.with_tables("nothing", text, Path("compile.md"))


EVALUATION = """
import dataclasses, sys
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


@pytest.mark.skipif(chips.compiler_version() is None, reason="needs the TPU compiler, which `make test` has on Linux")
def test_evaluation_between_steps_compiles_for_several_chips(config_file: Path) -> None:
    """With the splash kernel, which has to be told how the mesh splits its operands."""
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


@pytest.mark.skipif(chips.compiler_version() is None, reason="needs the TPU compiler, which `make test` has on Linux")
def test_a_small_member_compiles_for_a_tpu(config_file: Path) -> None:
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

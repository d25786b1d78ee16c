"""`steerling compile`: invalid options, reports, shortages, and estimates. For TPUs: test_compile_for_tpu.py."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jax
import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.aot import compiler
from steerling_jax.train.aot.chips import CHIPS, chip_of, device_count
from steerling_jax.train.aot.estimate import Work, estimate
from steerling_jax.train.aot.hlo import Costs, Traffic
from steerling_jax.train.aot.program import Program
from steerling_jax.train.aot.render import as_json, print_report, verdict
from steerling_jax.train.aot.report import Memory, Report, extrapolate, make_report, read_shortage
from steerling_jax.train.aot.target import Target
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import DataConfig, RunConfig, instruct_ids
from tests.worlds.training_world import CONFIG

# The two forms of the compiler's message.
TOO_BIG = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.00G of 15.75G "
    "hbm. Exceeded hbm capacity by 4.25G.\n\nTotal hbm usage >= 20.25G:"
)
MUCH_TOO_BIG = (
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
    """The report of a training step, compiled for one CPU."""
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
    output = capsys.readouterr().err.strip()
    assert code == 2
    assert REFUSED[options] in output
    assert len(output.splitlines()) == 1


def test_without_the_compiler(config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("TPU_LIBRARY_PATH", "nowhere")  # restored afterwards
    monkeypatch.setattr(compiler, "distributions", lambda **_: [])
    assert main(["compile", "--config", str(config_file), "--topology", "v5e:2x2"]) == 2
    assert "run `steerling compile --install-compiler`" in capsys.readouterr().err


def test_the_compiler_is_installed_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """From a folder of wheels, with an empty one; then it is found there without an environment variable."""
    (wanted,) = [r.partition(";")[0] for r in requires("jax") or () if r.startswith("libtpu")]
    version = wanted.removeprefix("libtpu==").replace("*", "9")
    with zipfile.ZipFile(tmp_path / f"libtpu-{version}-py3-none-any.whl", "w") as wheel:
        info = f"libtpu-{version}.dist-info"
        wheel.writestr("libtpu/libtpu.so", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: libtpu\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("TPU_LIBRARY_PATH", "nowhere")
    monkeypatch.setattr(compiler, "compiler_folder", lambda: tmp_path / "tpu")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert main(["compile", "--install-compiler"]) == 0
    assert capsys.readouterr().err == f"The TPU compiler is in {tmp_path / 'tpu'}.\n"
    compiler.use_installed_compiler()
    library = tmp_path / "tpu/libtpu/libtpu.so"
    assert (compiler.compiler_version(), os.environ["TPU_LIBRARY_PATH"]) == (version, str(library))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "tpu"))
    assert main(["compile", "--install-compiler"]) == 2
    assert f"pip cannot install {wanted} (No matching distribution found" in capsys.readouterr().err
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert main(["compile", "--install-compiler"]) == 2
    assert "for Linux on x86-64 alone, and this is Linux arm64." in capsys.readouterr().err


def test_devices_of_a_topology() -> None:
    assert device_count("v5e:16x16", slices=2) == 512
    assert device_count("tpu7x:4x4x4") == 128  # a chip is two devices
    assert chip_of("v5p:4x4x8").flops == 459e12


def test_the_shortage_is_parsed_from_the_message_of_the_compiler() -> None:
    short = read_shortage(TOO_BIG)
    assert (short.needed, short.available, short.missing) == (20 * 2**30, 15.75 * 2**30, 4.25 * 2**30)
    assert read_shortage(MUCH_TOO_BIG).missing == 47 * 2**30
    with pytest.raises(UserError, match="UNIMPLEMENTED: no such thing"):
        read_shortage("UNIMPLEMENTED: no such thing\nand more")


def test_the_report_of_a_program_that_does_not_fit(report: Report) -> None:
    short = dataclasses.replace(report, memory=None, costs=None, estimate=None, shortage=read_shortage(TOO_BIG))
    assert not short.fits
    assert "20.00 GiB of 15.75 GiB a device, 4.25 GiB too much" in verdict(short)
    assert as_json(short)["work_over_model"] is None
    print_report(short)


def test_report_of_a_training_step(report: Report, run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.fits
    assert report.memory is not None
    assert report.costs is not None
    # Parameters, two moments of each, and the batch.
    assert report.memory.arguments > 3 * 4 * report.parameters
    assert report.parameter_bytes == 4 * report.parameters
    assert report.costs.open_loops == 0
    # Attention computes all pairs and masks half of them; nothing is recomputed.
    assert report.work_over_model is not None
    assert 1.0 < report.work_over_model < 2.0
    body = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert body["fits"] is True
    assert body["model_flops"]["total"] == pytest.approx(report.model_flops.total)
    assert body["estimate"]["bound_by"] in ("compute", "memory", "links", "network")
    print_report(report)
    output = capsys.readouterr().out
    assert "It fits" in output
    assert f"{report.parameters / 1e9:.3f} G" in output


PHASES = {
    "steering": {"objective": SteeringObjective()},
    "adapters": {"lora": LoraConfig(rank=2), "start_from": "somewhere"},
    "instruction": {
        "objective": InstructionObjective(),
        "data": DataConfig(64, 32, 4, messages="talk.jsonl"),
        "accumulate": 2,
    },
}


@pytest.mark.parametrize("phase", PHASES)
def test_steps_of_other_phases_compile(phase: str, run: RunConfig) -> None:
    model = dataclasses.replace(run.model, n_layers=1)
    if phase == "instruction":
        model = dataclasses.replace(model, vocab_size=67, **instruct_ids(67))
    changed = dataclasses.replace(run, model=model, **PHASES[phase])
    result = make_report(Program("train", changed), one_cpu())
    assert result.fits
    assert result.work_over_model is not None
    assert result.work_over_model > 0.9


@pytest.mark.parametrize("mode", ["decode", "attribute"])
def test_inference_programs_compile(mode: Any, run: RunConfig) -> None:
    result = make_report(Program(mode, run, rows=2), one_cpu())
    assert result.costs is not None
    assert result.work_over_model is not None
    assert 0.9 < result.work_over_model < 3.0
    assert result.costs.open_loops >= 1  # of passes


def test_costs_are_extrapolated_linearly_in_depth() -> None:
    def at(layers: int) -> tuple[Memory, Costs]:
        sums = {"all-reduce": Traffic(2 * layers, 10 * layers, 20 * layers, 0)}
        return Memory(100 + 3 * layers, 7, 5, 1, 110 + 3 * layers), Costs(
            50 + 4 * layers, 9 * layers, sums, open_loops=1
        )

    assert extrapolate([at(2), at(4)], (2, 4), 32) == at(32)


def test_estimate() -> None:
    """Half a second of products at the peak, a quarter of memory traffic, one second on the links."""
    chip = CHIPS["tpu7x"]
    work = Work(
        flops=chip.flops / 2 / 2,
        memory=chip.hbm_rate / 2 / 4,
        sent=chip.link_rate / 2 / 2 + 5.0,
        sent_between=5.0,
        model_flops=chip.flops / 2 / 4,
    )
    result = estimate(work, chip)
    assert (result.compute, result.memory, result.links) == pytest.approx((0.5, 0.25, 1.0))
    assert result.network == pytest.approx(10.0 / chip.network_rate)
    assert (result.overlapped, result.bound_by) == (result.links, "links")
    assert result.share_overlapped == pytest.approx(0.25)
    assert result.share_in_turn == pytest.approx(0.25 / result.in_turn)

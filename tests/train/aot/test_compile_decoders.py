"""`steerling compile --model`: programs of decoders, compiled for one CPU; their FLOPs; invalid options."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.flops import pass_flops
from steerling_jax.models.decoder.parameters import parameter_shapes
from steerling_jax.models.lora import LoraConfig
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.aot.chips import CHIPS
from steerling_jax.train.aot.decoder_program import DecoderProgram
from steerling_jax.train.aot.open_models import model_shapes, read_model_shape, training_run
from steerling_jax.train.aot.program import Program
from steerling_jax.train.aot.program_flops import own_flops
from steerling_jax.train.aot.render import as_json, print_report
from steerling_jax.train.aot.report import make_report
from steerling_jax.train.aot.target import Target
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.small_decoder import small_run


def config(name: str) -> DecoderConfig:
    return sj.load(GOLDEN_DECODERS / name).config


def one_cpu() -> Target:
    return Target("v5e:1x1", CHIPS["v5e"], make_mesh(MeshShape(), jax.devices()[:1]))


@pytest.mark.parametrize("mode", ["forward", "decode"])
def test_programs_compile_and_count_what_the_mathematics_needs(mode: Any, capsys: pytest.CaptureFixture[str]):
    program = DecoderProgram("small", mode, config("gemma2"), sequences=2, seq_len=48)
    report = make_report(program, one_cpu())
    assert report.fits
    assert report.memory is not None
    assert report.costs is not None
    assert report.parameter_bytes == 2 * report.parameters
    # Two rows of keys and of values, in 4 layers, of 2 heads of size 16, at 48 positions; 2 bytes each.
    keys_values = 2 * 2 * 4 * 2 * 16 * 48 * 2 if mode == "decode" else 0
    assert report.memory.arguments >= report.parameter_bytes + keys_values
    # All keys are computed, of which a query sees half on the average, and fewer in sliding layers.
    assert report.work_over_model is not None
    assert 1.0 <= report.work_over_model < 1.6
    json.dumps(as_json(report), allow_nan=False)
    print_report(report)
    assert "It fits" in capsys.readouterr().out


def test_a_step_of_an_autoencoder_holds_the_model_and_the_state(capsys: pytest.CaptureFixture[str]):
    model, S = config("qwen3"), 128
    program = DecoderProgram("small", "autoencoder", model, sequences=4, seq_len=32, latents=S)
    report = make_report(program, one_cpu())
    assert report.memory is not None
    assert report.costs is not None
    # Encoder and decoder, each with two moments of Adam, in float32, beside all of the model.
    assert report.memory.arguments >= report.parameter_bytes + 4 * 3 * 2 * S * model.width
    forward = pass_flops(model, rows=4, length=32, logits=0).total
    own = forward + 2 * 4 * 32 * model.width * (S + 4 * 50)
    assert own_flops(program).total == own
    assert main(["compile", "--model", "Qwen3-8B", "--topology", "v5e:4x4", "--mode", "autoencoder"]) == 2
    assert "--mode autoencoder needs --latents" in capsys.readouterr().err


def test_an_autoencoder_adds_its_weights():
    program = DecoderProgram("small", "forward", config("llama"), seq_len=32)
    plain, encoding = (make_report(replace(program, latents=latents), one_cpu()) for latents in (0, 256))
    assert plain.memory is not None
    assert encoding.memory is not None
    added = encoding.memory.arguments - plain.memory.arguments
    assert added == pytest.approx(4 * (2 * 256 * 32 + 256 + 32), rel=0.01)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_training_steps_of_configs_compile(lora: LoraConfig | None):
    run = small_run(lora=lora, start_from=None if lora is None else "model")
    report = make_report(Program("train", run), one_cpu())
    assert report.fits
    assert report.layers == 2
    assert report.memory is not None
    state = 3 if lora is None else 1  # the weights and two moments, or the weights under adapters
    assert report.memory.arguments >= 4 * state * report.parameters
    assert report.work_over_model is not None
    assert 0.9 < report.work_over_model < 2.0
    assert Program("train", run).with_layers(1).run.model.layer_types == ("full_attention",)


def test_published_shapes_have_the_numbers_of_parameters_in_their_names():
    for name in model_shapes():
        stated = float(name.partition("-")[2].partition("B")[0])
        found, model = read_model_shape(name)
        parameters = sum(math.prod(shape) for shape in parameter_shapes(model).values())
        assert found == name
        assert parameters == pytest.approx(stated * 1e9, rel=0.03)
        program = Program("train", training_run(name, model, 16, 2048))
        assert (program.sequences, program.seq_len, program.layers) == (16, 2048, model.n_layers)


def test_depths_that_are_compiled_in_place_of_a_deep_model_are_whole_periods():
    hybrid, uniform = config("qwen3_5"), config("llama")
    kinds = ("linear_attention", "linear_attention", "linear_attention", "full_attention") * 4
    deep = DecoderProgram("deep", "forward", replace(hybrid, num_hidden_layers=16, layer_types=kinds))
    assert deep.depths == (4, 8)
    assert deep.with_layers(8).config.layer_types == kinds[:8]
    many = replace(uniform, num_hidden_layers=9, layer_types=("full_attention",) * 9)
    assert DecoderProgram("many", "forward", many).depths == (2, 3)


def test_flops_of_a_pass_by_hand():
    """Qwen3.5-MoE with one DeltaNet and one attention layer: D 32, 4 query heads of 16 with gates, 2 key heads."""
    two = replace(
        config("qwen3_5_moe"),
        num_hidden_layers=2,
        layer_types=("linear_attention", "full_attention"),
        moe_layers=(True, True),
    )
    flops = pass_flops(two, rows=3, length=2, cached=5, logits=2)
    experts = 3 * 32 * 24 * 2 + 3 * 32 * 24 + 32 * 8 + 32  # two experts, the shared one, the router, the shared gate
    attention = 32 * 16 * (2 * 4 + 2 + 2 + 4)
    deltanet = 32 * (64 + 32 + 4 + 4) + 32 * 32
    assert flops.layers == 2 * 3 * 2 * (2 * experts + attention + deltanet)
    assert flops.attention == 3 * (4 * 4 * 16 * (6 + 7) + 6 * 2 * 4 * 8 * 8)
    assert flops.output == 2 * 3 * 2 * 32 * 64


REFUSED = {
    "--model {model} --mode attribute": "must be forward, decode, autoencoder or train",
    "--model {model} --mode train --latents 64": "--latents",
    "--model {model} --mode train": "--length is 2048, but the context of llama is 256",
    "--model Qwen3-8": "one of Qwen3-30B-A3B, Qwen3-8B, Qwen3.5-27B",
    "--model {model} --mode decode --latents 64": "--latents",
    "--model {model} --latents 8": "--latents is 8",
    "--model {model} --batch-size 4": "--config",
    "--model {model} --layers 9": "the model has 4",
    "--model {model} --length 0": "--length is 0",
    "--model {model}/nothing": "There is no folder",
    "--model {model}/nothing.json": "Cannot read",
}


@pytest.mark.parametrize("options", REFUSED)
def test_bad_input_is_one_sentence(options: str, capsys: pytest.CaptureFixture[str]):
    model: Path = GOLDEN_DECODERS / "llama"
    code = main(["compile", "--topology", "v5e:2x2", *options.format(model=model).split()])
    output = capsys.readouterr().err.strip()
    assert code == 2
    assert REFUSED[options] in output
    assert len(output.splitlines()) == 1

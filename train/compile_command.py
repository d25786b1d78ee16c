"""`steerling compile`: compiles the programs of a model with the TPU compiler, without a TPU."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from steerling_jax.models.decoder.config import DecoderConfig
    from steerling_jax.parallel.sharding import MeshShape
    from steerling_jax.train.aot.decoder_program import DecoderProgram
    from steerling_jax.train.aot.report import Report
    from steerling_jax.train.run.run_config import RunConfig

HELP = """\
Compile a config or a model for TPUs without having one: memory, FLOPs, collectives, whether it fits.

examples:
  steerling compile --install-compiler
  steerling compile --config steerling_8b --topology v5e:16x16
  steerling compile --config steerling_8b --topology v5e:16x16 --slices 2 --batch-size 512
  steerling compile --config steerling_8b --topology v5p:2x2x1 --mode decode --rows 8 --json
  steerling compile --config tiny --topology v5e:2x2
  steerling compile --model Qwen3-8B --topology v5e:2x4 --mode decode --rows 8 --length 8192
  steerling compile --model ./my-model --topology v5e:8x8 --mode train --rows 64

Needs the TPU compiler: `steerling compile --install-compiler`, once. The exit code is 1 where the program does not fit.
docs/design/compile.md explains the figures; docs/results/compile.md lists those of the 8 B model.
"""
COMPILE_CACHE = False  # its figures are of programs that it compiles
_KEPT_LATENTS = 50  # of a position, by the autoencoder of --latents
DEPTHS = (2, 4)  # layers of the decoding loops that are compiled in place of a deeper one


def configure(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="NAME", help="a config's name, or a .py file with config()")
    source.add_argument(
        "--model",
        metavar="PATH",
        help="a decoder model instead (Llama, Qwen3, Gemma …): its config.json, its folder, or the name of a published "
        "shape: Qwen3-8B, Qwen3-30B-A3B, Qwen3.5-27B",
    )
    parser.add_argument("--topology", metavar="CHIP:SIDES", help="v5e:16x16, v5p:4x4x8, tpu7x:4x4x4 …")
    parser.add_argument(
        "--install-compiler",
        action="store_true",
        help="install the TPU compiler (200 MB) beside this Python's packages, and do nothing else",
    )
    parser.add_argument(
        "--slices",
        type=number_in_range(int, 1),
        default=1,
        metavar="N",
        help="number of slices (default: 1)",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="train: a step (default); decode: a pass of the decoding loop; attribute: a pass of integrated gradients; "
        "with --model: forward (default), a pass that returns the outputs of all layers, decode, train, or "
        "autoencoder, a step that trains one of --latents on the last layer",
    )
    parser.add_argument(
        "--rows",
        type=number_in_range(int, 1),
        default=8,
        metavar="N",
        help="rows of a pass; with --model, also sequences of a step (default: 8)",
    )
    parser.add_argument(
        "--length",
        type=number_in_range(int, 1),
        default=2048,
        metavar="N",
        help="with --model: positions of a pass, of a sequence, or of the cache (default: 2048)",
    )
    parser.add_argument(
        "--latents",
        type=number_in_range(int, _KEPT_LATENTS),
        metavar="N",
        help="with --model: also encode a layer's output with an autoencoder of so many latents",
    )
    parser.add_argument(
        "--batch-size", type=number_in_range(int, 1), metavar="N", help="sequences of a step (default: the config's)"
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,…",
        help="data=2,fsdp=-1,tensor=4; -1: all remaining devices (default: the config's; decoding: all along tensor)",
    )
    parser.add_argument(
        "--layers",
        type=number_in_range(int, 1),
        metavar="N",
        help="number of layers (default: the config's; decoding compiles 2 and 4 and extrapolates to it)",
    )
    parser.add_argument("--without-concepts", action="store_true", help="the same model without its concept module")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.train.aot.compiler import install_compiler

    if args.install_compiler:
        require(args.config is None, "--install-compiler compiles nothing; leave --config out.")
        note(f"The TPU compiler is in {install_compiler()}.")
        return 0
    require(args.config or args.model, "--config is missing; give a config, or --model for a decoder model.")
    require(args.topology is not None, "--topology is missing; see `steerling compile --help`.")
    for_compiling_only()
    from steerling_jax.train.aot.render import as_json, print_report

    report = report_for(args, note)
    if args.json:
        print_json(as_json(report))
    else:
        print_report(report)
    return 0 if report.fits else 1


def for_compiling_only() -> None:
    """Sets the environment of JAX and the TPU library for a machine without TPUs; call it before either is loaded."""
    # No query of Google Cloud's metadata server, which is not there; and several processes may load the library.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    # The library looks these up on a TPU machine and prints warnings without them. They do not affect what is compiled.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from steerling_jax.train.aot.compiler import use_installed_compiler

    use_installed_compiler()


def report_for(args: argparse.Namespace, note: Any) -> Report:
    """Validates the options, then compiles. `note` prints a message for a person."""
    from steerling_jax.cli.console import stages
    from steerling_jax.models.decoder.config import DecoderConfig
    from steerling_jax.parallel.sharding import MeshShape
    from steerling_jax.train.aot import chips
    from steerling_jax.train.aot.decoder_program import DECODER_MODES
    from steerling_jax.train.aot.depths import decoder_depths
    from steerling_jax.train.aot.program import MODES, Program
    from steerling_jax.train.aot.report import make_report
    from steerling_jax.train.aot.target import Target
    from steerling_jax.train.run.config_files import load_config

    modes = MODES if args.model is None else (*DECODER_MODES, "train")
    mode: Any = modes[0] if args.mode is None else args.mode
    if mode not in modes:
        raise UserError(f"--mode is {mode!r}, but it must be {', '.join(modes[:-1])} or {modes[-1]}.")
    chip, mesh_shape, depths = chips.chip_of(args.topology), MeshShape(data=1, fsdp=1, tensor=-1), ()
    if args.model is not None and mode != "train":
        program = _decoder_program(args, mode)
        if args.layers is None and program.layers > program.depths[-1]:
            depths = program.depths
    else:
        config = _override(load_config(args.config), args) if args.model is None else _training_run(args)
        program = Program(mode, config, args.rows)
        decoder = isinstance(config.model, DecoderConfig)
        if decoder and mode != "train":
            raise UserError(
                f"--mode {mode} does not apply to the config of a decoder; give its config.json as --model."
            )
        # The other programs loop over layers, and the body is compiled once. The decoding loop has each layer by
        # itself, so that its compile time grows with the depth; as a decoder's step without rematerialisation has.
        if mode != "decode":
            mesh_shape = config.mesh
        if mode == "decode" or (decoder and not config.compute.remat):
            fewer = decoder_depths(config.model) if decoder else DEPTHS
            depths = fewer if args.layers is None and config.model.n_layers > fewer[-1] else ()
    target = Target(args.topology, chip, _mesh(args, mesh_shape))
    note(f"Compiling for {target.mesh.size} devices; this takes from a few seconds to several minutes.")
    with stages() as progress:
        progress("compiling", 0, 1)
        report = make_report(program, target, depths)
        progress("compiling", 1, 1)
    return report


def _override(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    """The config with the options that override its fields."""
    from steerling_jax.models.decoder.config import DecoderConfig
    from steerling_jax.train.aot.depths import first_layers

    model, data = config.model, config.data
    if isinstance(model, DecoderConfig):
        require(not args.without_concepts, f"--without-concepts does not apply to a {model.family} model.")
        if args.layers is not None:
            _check_layers(args.layers, model.n_layers)
            model = first_layers(model, args.layers)
    elif args.layers is not None:
        model = dataclasses.replace(model, n_layers=args.layers)
    if args.without_concepts:
        model = dataclasses.replace(model, interpretable=False, concept=None)
    if args.batch_size is not None:
        data = dataclasses.replace(data, batch_size=args.batch_size)
    return dataclasses.replace(config, model=model, data=data)


def _decoder_program(args: argparse.Namespace, mode: Any) -> DecoderProgram:
    """The program of the model in --model, with so many layers as --layers says."""
    from steerling_jax.train.aot.decoder_program import DecoderProgram

    if args.latents is not None and mode not in ("forward", "autoencoder"):
        raise UserError("--latents belongs to --mode forward and autoencoder; leave one of them out.")
    require(mode != "autoencoder" or args.latents is not None, "--mode autoencoder needs --latents; give the number.")
    name, model = _model_shape(args)
    return DecoderProgram(name, mode, model, args.rows, args.length, args.latents or 0)


def _training_run(args: argparse.Namespace) -> RunConfig:
    """The run that trains the model in --model."""
    from steerling_jax.train.aot.open_models import training_run

    require(args.latents is None, "--latents belongs to --mode forward and autoencoder; leave one of them out.")
    name, model = _model_shape(args)
    require(
        args.length <= model.context_length,
        f"--length is {args.length}, but the context of {name} is {model.context_length}; give at most that.",
    )
    return training_run(name, model, args.rows, args.length)


def _model_shape(args: argparse.Namespace) -> tuple[str, DecoderConfig]:
    """The name and the configuration of the model in --model, with so many layers as --layers says."""
    from steerling_jax.train.aot.depths import first_layers
    from steerling_jax.train.aot.open_models import read_model_shape

    if args.without_concepts or args.batch_size is not None:
        raise UserError("--without-concepts and --batch-size belong to --config; give --rows for --model.")
    name, model = read_model_shape(args.model)
    if args.layers is None:
        return name, model
    _check_layers(args.layers, model.n_layers)
    return name, first_layers(model, args.layers)


def _check_layers(layers: int, most: int) -> None:
    require(layers <= most, f"--layers is {layers}, but the model has {most}; give at most that.")


def _mesh(args: argparse.Namespace, default: MeshShape) -> Mesh:
    """The mesh that --topology, --slices and --mesh describe."""
    from steerling_jax.train.aot import chips
    from steerling_jax.train.aot.compiler import check_compiler
    from steerling_jax.train.aot.target import mesh_for

    shape = _mesh_shape(args, default)
    shape.sizes(chips.device_count(args.topology, args.slices))
    check_compiler()
    return mesh_for(shape, chips.topology_devices(args.topology, args.slices))


def _mesh_shape(args: argparse.Namespace, default: MeshShape) -> MeshShape:
    """The sizes in --mesh; axes that it does not name have size 1."""
    from steerling_jax.parallel.sharding import MeshShape

    if args.mesh is None:
        return default
    known = [field.name for field in dataclasses.fields(MeshShape)]
    sizes = dict.fromkeys(known, 1)
    for part in args.mesh.split(","):
        name, _, size = part.strip().partition("=")
        if name not in known or not size.removeprefix("-").isdigit():
            raise UserError(
                f"--mesh has {part.strip()!r}, but each part must be AXIS=N with AXIS one of {', '.join(known)}."
            )
        sizes[name] = int(size)
    return MeshShape(**sizes)

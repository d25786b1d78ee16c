"""`steerling compile`: compiles the programs of a model with the TPU compiler, without a TPU."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.parallel.sharding import MeshShape
    from steerling_jax.train.aot.report import Report
    from steerling_jax.train.run.run_config import RunConfig

HELP = """\
Compile a config for TPUs without having one: memory, FLOPs, collectives, and whether it fits.

examples:
  steerling compile --install-compiler
  steerling compile --config steerling_8b --topology v5e:16x16
  steerling compile --config steerling_8b --topology v5e:16x16 --slices 2 --batch-size 512
  steerling compile --config steerling_8b --topology v5p:2x2x1 --mode decode --rows 8 --json
  steerling compile --config tiny --topology v5e:2x2

Needs the TPU compiler: `steerling compile --install-compiler`, once. The exit code is 1 where the program does not fit.
docs/design/compile.md explains the figures; docs/results/compile.md lists those of the 8 B model.
"""

DEPTHS = (2, 4)  # layers of the decoding loops that are compiled in place of a deeper one


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="NAME", help="a config's name, or a .py file with config()")
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
        default="train",
        metavar="MODE",
        help="train: a step (default); decode: a pass of the decoding loop; attribute: a pass of integrated gradients",
    )
    parser.add_argument(
        "--rows", type=number_in_range(int, 1), default=8, metavar="N", help="rows of a pass (default: 8)"
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
    for name in ("config", "topology"):
        require(getattr(args, name) is not None, f"--{name} is missing; see `steerling compile --help`.")
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
    from steerling_jax.train.aot import chips
    from steerling_jax.train.aot.compiler import check_compiler
    from steerling_jax.train.aot.program import MODES, Program
    from steerling_jax.train.aot.report import make_report
    from steerling_jax.train.aot.target import Target, mesh_for
    from steerling_jax.train.run.config_files import load_config

    if args.mode not in MODES:
        raise UserError(f"--mode is {args.mode!r}, but it must be {', '.join(MODES[:-1])} or {MODES[-1]}.")
    chip = chips.chip_of(args.topology)
    config = _override(load_config(args.config), args)
    shape = _mesh_shape(args, config)
    shape.sizes(chips.device_count(args.topology, args.slices))
    check_compiler()
    mesh = mesh_for(shape, chips.topology_devices(args.topology, args.slices))
    # The other programs loop over layers, and the body is compiled once. The decoding loop has each layer by itself, so
    # that its compile time grows with the depth.
    deep = config.model.n_layers > DEPTHS[-1]
    depths = DEPTHS if args.mode == "decode" and args.layers is None and deep else ()
    note(f"Compiling for {mesh.size} devices; this takes from a few seconds to several minutes.")
    program = Program(args.mode, config, args.rows)
    with stages() as progress:
        progress("compiling", 0, 1)
        report = make_report(program, Target(args.topology, chip, mesh), depths)
        progress("compiling", 1, 1)
    return report


def _override(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    """The config with the options that override its fields."""
    model, data = config.model, config.data
    if args.layers is not None:
        model = dataclasses.replace(model, n_layers=args.layers)
    if args.without_concepts:
        model = dataclasses.replace(model, interpretable=False, concept=None)
    if args.batch_size is not None:
        data = dataclasses.replace(data, batch_size=args.batch_size)
    return dataclasses.replace(config, model=model, data=data)


def _mesh_shape(args: argparse.Namespace, config: RunConfig) -> MeshShape:
    """The sizes in --mesh; axes that it does not name have size 1."""
    from steerling_jax.parallel.sharding import MeshShape

    if args.mesh is None:
        return MeshShape(data=1, fsdp=1, tensor=-1) if args.mode == "decode" else config.mesh
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

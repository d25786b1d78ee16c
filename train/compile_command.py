"""`steerling compile`: a model's programs through the real TPU compiler, with no TPU present."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.train.aot.report import Report
    from steerling_jax.train.run.run_config import RunConfig

HELP = """\
Compile a config for real TPUs with none present: memory, FLOPs, what is exchanged, does it fit.

examples:
  steerling compile --config steerling_8b --topology v5e:16x16
  steerling compile --config steerling_8b --topology v5e:16x16 --slices 2 --batch-size 512
  steerling compile --config steerling_8b --topology v5p:2x2x1 --mode decode --rows 8 --json
  steerling compile --config tiny --topology v5e:2x2

Needs the TPU compiler: pip install 'steerling-jax[tpu]'. The exit code is 1 where the program does not fit.
docs/compile.md explains the figures and has those of the 8 B model.
"""

DEPTHS = (2, 4)  # of a decoding loop, whose layers are compiled one by one


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="NAME", help="a config's name, or a .py file with config()")
    parser.add_argument("--topology", required=True, metavar="CHIP:SIDES", help="v5e:16x16, v5p:4x4x8, tpu7x:4x4x4 …")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many of these, joined by the network")
    parser.add_argument(
        "--mode",
        default="train",
        metavar="MODE",
        help="train: a step (default); decode: a pass of the decoding loop; attribute: one of integrated gradients",
    )
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="rows of a pass (default: 8)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="sequences of a step (default: the config's)")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,…",
        help="data=2,fsdp=-1,tensor=4; -1 is the rest (default: the config's; for decoding all chips along tensor)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="a model of so many layers (default: the config's; decoding compiles 2 and 4 and goes on in a line)",
    )
    parser.add_argument("--without-concepts", action="store_true", help="the same model as a bare backbone")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    for_compiling_only()
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.train.aot.render import as_json, print_report

    report = report_for(args, note)
    if args.json:
        print_json(as_json(report))
    else:
        print_report(report)
    return 0 if report.fits else 1


def for_compiling_only() -> None:
    """Tells JAX and the TPU library, before either is loaded, that there is no TPU to look for; a second process may
    compile too."""
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    # What it would ask the machine for, and complain of in five lines. Nothing that is compiled depends on it.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def report_for(args: argparse.Namespace, note: Any) -> Report:
    """Checks what was asked for, then compiles."""
    from steerling_jax.train.aot import chips
    from steerling_jax.train.aot.programs import MODES, mesh_for
    from steerling_jax.train.aot.report import make_report
    from steerling_jax.train.run.config_files import load_config

    if args.mode not in MODES:
        raise UserError(f"--mode is {args.mode!r}, but it must be {', '.join(MODES[:-1])} or {MODES[-1]}.")
    for option in ("rows", "slices", "batch_size", "layers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is {value}, but it must be at least 1.")
    chip = chips.chip_of(args.topology)
    config = _changed(load_config(args.config), args)
    shape = _mesh_shape(args, config)
    shape.sizes(chips.device_count(args.topology, args.slices))
    chips.check_compiler()
    mesh = mesh_for(shape, chips.topology_devices(args.topology, args.slices))
    # A loop over layers is compiled once however many there are; layers one by one are not.
    depths = [config.model.n_layers]
    if args.mode == "decode" and args.layers is None and depths[0] > DEPTHS[-1]:
        depths = list(DEPTHS)
    note(f"Compiling for {mesh.size} devices; this takes from seconds to some minutes.")
    return make_report(args.mode, config, args.topology, chip, mesh, rows=args.rows, depths=depths)


def _changed(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    model, data = config.model, config.data
    if args.layers is not None:
        model = dataclasses.replace(model, n_layers=args.layers)
    if args.without_concepts:
        model = dataclasses.replace(model, interpretable=False, concept=None)
    if args.batch_size is not None:
        data = dataclasses.replace(data, batch_size=args.batch_size)
    return dataclasses.replace(config, model=model, data=data)


def _mesh_shape(args: argparse.Namespace, config: RunConfig) -> Any:
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

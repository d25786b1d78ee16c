"""Options that the commands of `steerling sae` share, and the model and the autoencoders that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what texts are read with."""
    add = parser.add_argument
    add_model_option(parser)
    add("--autoencoder", metavar="PATH", help="an autoencoder of the model's layers, or a folder with those of several "
        "(default: the model's bottleneck)")  # fmt: skip
    add("--k", type=number_in_range(int, 1), metavar="N",
        help="latents of a token, where the autoencoder's files do not say it")  # fmt: skip


def add_layer_option(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Adds --layer: of one autoencoder, or of several."""
    add, kind = parser.add_argument, number_in_range(int, 0)
    if several:
        words = "use the autoencoder of this block, from 0; can be repeated (default: all that are found)"
        add("--layer", type=kind, action="append", metavar="N", help=words)
    else:
        words = "the block whose autoencoder is used, from 0 (default: the middle one of those found)"
        add("--layer", type=kind, metavar="N", help=words)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds --seed, --json and --plot."""
    add = parser.add_argument
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="random seed (default: %(default)s)")
    add("--json", action="store_true", help="print the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the result, as .svg, .png or .pdf (needs matplotlib)")


def add_stage_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of collections that are read in stages."""
    add = parser.add_argument_group("files read in stages, by several processes or machines").add_argument
    add("--work", metavar="FOLDER",
        help="write the features of each file to this folder or gs://… address, and resume from it")  # fmt: skip
    add("--workers", type=number_in_range(int, 1), default=1, metavar="N",
        help="local processes (default: %(default)s)")  # fmt: skip
    add("--runner", metavar="NAME",
        help="an Apache Beam runner: DirectRunner, DataflowRunner, FlinkRunner (default: local processes)")  # fmt: skip
    add("--runner-options", nargs="+", default=[], metavar="NAME=VALUE",
        help="Beam pipeline options without leading dashes: project=P region=R")  # fmt: skip


def check_stage_options(args: argparse.Namespace) -> None:
    """Raises `UserError` for options of stages without --work."""
    given = ["--workers"] * (args.workers > 1) + ["--runner"] * (args.runner is not None)
    if args.work is None and (given or args.runner_options):
        option = (given or ["--runner-options"])[0]
        raise UserError(f"{option} is for files read in stages; also give --work, a folder that every process reaches.")


def load_model_and_autoencoders(args: argparse.Namespace) -> tuple[Bundle, list[Autoencoder]]:
    """The model of --model in float32, and the autoencoders of --autoencoder, which must fit it."""
    return load_reader(args.model, args.autoencoder, args.k, args.layer)


def load_model_and_autoencoder(args: argparse.Namespace) -> tuple[Bundle, Autoencoder]:
    """The model, and one autoencoder: of the block of --layer, or the middle one of those found."""
    layers = None if args.layer is None else [args.layer]
    bundle, found = load_reader(args.model, args.autoencoder, args.k, layers)
    return bundle, found[len(found) // 2]


def load_reader(
    model: str | None, autoencoder: str | None, k: int | None, layers: list[int] | None
) -> tuple[Bundle, list[Autoencoder]]:
    """A model in float32, and autoencoders that fit it: of some blocks, of all that are found, or its bottleneck."""
    import steerling_jax as sj
    from steerling_jax.autoencoders.bottleneck import bottleneck_of
    from steerling_jax.autoencoders.model_fit import check_fits
    from steerling_jax.io.autoencoders.load import load_autoencoders

    bundle = sj.load(model, dtype="float32")  # first positions may have norms beyond bfloat16's accuracy
    if autoencoder is None:
        return bundle, [bottleneck_of(bundle)]
    autoencoders = load_autoencoders(autoencoder, k=k, layers=layers)
    for one in autoencoders:
        check_fits(one, bundle)
    return bundle, autoencoders

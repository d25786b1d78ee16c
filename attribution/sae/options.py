"""Options that the commands of `steerling sae` share, and the model and the autoencoders that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model_option, number_in_range

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


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds --seed, --json and --plot."""
    add = parser.add_argument
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="random seed (default: %(default)s)")
    add("--json", action="store_true", help="print the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the result, as .svg, .png or .pdf (needs matplotlib)")


def load_model_and_autoencoders(args: argparse.Namespace, layers: list[int] | None) -> tuple[Bundle, list[Autoencoder]]:
    """The model of --model in float32, and the autoencoders of --autoencoder, which must fit it."""
    import steerling_jax as sj
    from steerling_jax.autoencoders.bottleneck import bottleneck_of
    from steerling_jax.autoencoders.model_fit import check_fits
    from steerling_jax.io.autoencoders.load import load_autoencoders

    bundle = sj.load(args.model, dtype="float32")  # first positions may have norms beyond bfloat16's accuracy
    if args.autoencoder is None:
        return bundle, [bottleneck_of(bundle)]
    autoencoders = load_autoencoders(args.autoencoder, k=args.k, layers=layers)
    for one in autoencoders:
        check_fits(one, bundle)
    return bundle, autoencoders

"""The option --autoencoders: autoencoders of several blocks, whose features stand beside concepts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import number_in_range

if TYPE_CHECKING:
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle


def add_autoencoders_option(add: Any, *, with_k: bool) -> None:
    """add: the `add_argument` of a parser or a group. with_k: also --autoencoder-k, which steering options have."""
    add(
        "--autoencoders",
        nargs="+",
        metavar="PATH",
        help="autoencoders of different blocks of the model, whose features are shown and can be named",
    )
    if with_k:
        add(
            "--autoencoder-k",
            type=number_in_range(int, 1),
            metavar="N",
            help="latents that they keep of a token, where their files do not say it",
        )


def load_autoencoders(args: argparse.Namespace) -> tuple[Autoencoder, ...]:
    """The autoencoders of --autoencoders by block, none without it. Raises `UserError` for files that do not exist, and
    unless each is of another block."""
    if not args.autoencoders:
        return ()
    from steerling_jax.autoencoders.model_fit import check_fit_together
    from steerling_jax.io.autoencoders.load import load_autoencoder

    found = tuple(load_autoencoder(path, k=args.autoencoder_k) for path in args.autoencoders)
    check_fit_together(found)
    return tuple(sorted(found, key=lambda one: one.layer or 0))


def with_autoencoders(bundle: Bundle, autoencoders: tuple[Autoencoder, ...]) -> Bundle:
    """The model with their features in its catalogue. Raises `UserError` for an autoencoder of another model."""
    if not autoencoders:
        return bundle
    from steerling_jax.autoencoders.model_features import with_features

    return with_features(bundle, *autoencoders)

"""Whether an autoencoder can read the hidden states of a model, and has the features that are requested."""

from __future__ import annotations

from collections.abc import Sequence

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require


def check_fits(autoencoder: Autoencoder, bundle: Bundle) -> None:
    """Raises `UserError` for an autoencoder that reads rows of another width, or a block that the model lacks."""
    backbone = bundle.backbone
    if autoencoder.width != backbone.width:
        raise UserError(
            f"{autoencoder.name} reads rows of width {autoencoder.width}, but those of {bundle.name} have "
            f"{backbone.width}; give an autoencoder of this model."
        )
    if autoencoder.layer is not None and autoencoder.layer >= backbone.n_layers:
        raise UserError(
            f"{autoencoder.name} reads block {autoencoder.layer}, but the blocks of {bundle.name} are 0 to "
            f"{backbone.n_layers - 1}; give an autoencoder of this model."
        )


def check_fit_together(autoencoders: Sequence[Autoencoder]) -> None:
    """Raises `UserError` unless each autoencoder reads a block, and no two the same."""
    readers: dict[int, str] = {}
    for one in autoencoders:
        if one.layer is None:
            raise UserError(
                f"{one.name} does not say which block it reads; give an autoencoder of a block's output, whose "
                "configuration names the block."
            )
        if one.layer in readers:
            raise UserError(
                f"{readers[one.layer]} and {one.name} both read block {one.layer}; give one autoencoder for each block."
            )
        readers[one.layer] = one.name


def check_features(autoencoder: Autoencoder, features: Sequence[int], argument: str = "features") -> None:
    """Raises `UserError`, about `argument`, for a feature that the autoencoder lacks."""
    S = autoencoder.n_latents
    for feature in features:
        require(0 <= feature < S, f"There is no feature {feature}; this autoencoder has 0 to {S - 1}.", argument)

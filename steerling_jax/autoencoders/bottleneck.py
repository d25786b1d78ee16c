"""A bottleneck after the final norm of a model: its next-token logits then *are* sums over k features and a bias.

    features of a row h:   z, f = TopK(ReLU((h − b_dec) W_enc + b_enc))
    what is read instead:  ĥ = Σ_j z_j W_dec[f_j] + b_dec
    a token's logit:       ĥ · u = Σ_j z_j (W_dec[f_j] · u) + b_dec · u          (u: the token's row of the table)

The layers of the model do not change. Where a model caps its logits, the sum is the logit before the cap.

Legend: B rows, T positions, D width, k latents kept of each row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.models.steerling.config import ModelConfig


@struct.dataclass
class Bottleneck:
    """The entry of a model's parameters that its backbone calls after the final norm (`models.backbone`)."""

    weights: Weights

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """ĥ of hidden states (B, T, D), in their dtype."""
        k = self.weights.settings.k
        assert k is not None
        rows = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
        output = decode_rows(self.weights, *encode_rows(self.weights, rows, k))
        return output.reshape(hidden.shape).astype(hidden.dtype)


def attach_bottleneck(bundle: Bundle, autoencoder: Autoencoder) -> Bundle:
    """The model with a TopK autoencoder of its last hidden states in their place, as `steerling attach` trains it.

    Everything that reads logits then reads those of the features: `sj.forward`, `sj.generate`, `sj.log_likelihood` and
    the commands. `sj.feature_contributions` splits them. A bottleneck that the model has already is replaced.

    Raises `UserError` for an autoencoder of another width, of a block's output, or of another kind than TopK, and for a
    Steerling model without epsilon, whose logits are sums over concepts as they are.

    Example:
        >>> autoencoder = sj.load_autoencoder("runs/attach/export")
        >>> bundle = sj.attach_bottleneck(sj.load("SmolLM2-135M-Instruct.Q4_1.gguf"), autoencoder)
    """
    name, settings = autoencoder.name or "The autoencoder", autoencoder.weights.settings
    width = bundle.backbone.width
    require(
        autoencoder.width == width,
        f"{name} reads rows of width {autoencoder.width}, but those of {bundle.name} have {width}; give the bottleneck "
        "of this model.",
    )
    require(
        autoencoder.layer is None,
        f"{name} reads the output of block {autoencoder.layer}, but a bottleneck reads the rows after the final norm; "
        "train one with `steerling attach`.",
    )
    plain = settings.activation == "topk" and settings.normalise == "none" and autoencoder.weights.W_skip is None
    require(plain, f"{name} is no plain TopK autoencoder, so it gives no sum over k features; attach a TopK one.")
    check_can_be_attached(bundle)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(autoencoder.weights))
    require(finite, f"{name} contains NaN or infinite values; its file is damaged, load another one.")
    params = {**bundle.params, BOTTLENECK: Bottleneck(autoencoder.weights)}
    return dataclasses.replace(bundle, params=params, bottleneck_features=autoencoder.features)


def check_can_be_attached(bundle: Bundle) -> None:
    """Raises `UserError` for a model whose logits are not those of its last hidden state."""
    concept = bundle.config.concept if isinstance(bundle.config, ModelConfig) else None
    strict = concept is not None and not concept.use_epsilon_correction
    require(not strict, f"{bundle.name} has concepts and no epsilon, so its logits are sums over concepts already and "
            "it takes no bottleneck.")  # fmt: skip


def detach_bottleneck(bundle: Bundle) -> Bundle:
    """The model without its bottleneck."""
    params = {name: value for name, value in bundle.params.items() if name != BOTTLENECK}
    return dataclasses.replace(bundle, params=params, bottleneck_features=())


def bottleneck_of(bundle: Bundle) -> Autoencoder:
    """The attached bottleneck as an autoencoder, with what is known of its features.

    Raises `UserError` for a model without one.
    """
    if BOTTLENECK not in bundle.params:
        raise UserError(
            f"{bundle.name or 'The model'} has no bottleneck; make one with `steerling attach`, and load its export."
        )
    weights, name = bundle.params[BOTTLENECK].weights, f"the bottleneck of {bundle.name}"
    return Autoencoder(weights, None, name, features=bundle.bottleneck_features)

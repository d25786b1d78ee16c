"""The arrays of a sparse autoencoder, and the settings in which formats differ: activation, centring and scaling.

Legend: N rows, D width of the hidden states, S latents (features), k latents kept of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.errors import require

Activation = Literal["topk", "groupmax", "threshold"]
Normalisation = Literal["none", "layer_norm"]

_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Settings:
    """How an autoencoder computes; equal settings share compiled programs.

    Attributes:
        activation: which pre-activations are kept. "topk": the k largest, where positive (TopK). "groupmax": the
            largest of each of k groups of neighbouring latents, where positive. "threshold": all above the latent's
            threshold and above 0 (JumpReLU, and BatchTopK after training), or above 0 without thresholds (ReLU).
        k: latents kept of each row; None with "threshold".
        subtract_b_dec: whether `b_dec` is subtracted from x before encoding.
        rescale_by_decoder_norm: whether pre-activations are multiplied by the norms of the decoder's rows, and latents
            divided by them before decoding.
        normalise: "layer_norm" centres x and divides it by its standard deviation (unbiased, plus 1e-5).
    """

    activation: Activation = "topk"
    k: int | None = None
    subtract_b_dec: bool = False
    rescale_by_decoder_norm: bool = False
    normalise: Normalisation = "none"

    def check(self, n_latents: int, name: str) -> None:
        """Raises `UserError`, beginning with `name`, if k does not fit the activation or the number of latents."""
        if self.activation == "threshold":
            require(self.k is None, f"{name} keeps what exceeds a threshold, so it takes no k; leave k out.", "k")
            return
        require(self.k is not None, f"{name} does not say how many latents a row keeps; give k, for example k=50.", "k")
        assert self.k is not None
        fits = 1 <= self.k <= n_latents
        require(fits, f"{name}: k is {self.k}, but it must be between 1 and {n_latents}, the number of latents.", "k")
        divides = self.activation != "groupmax" or n_latents % self.k == 0
        require(divides, f"{name}: {n_latents} latents cannot be cut into {self.k} equal groups; give another k.", "k")


@struct.dataclass
class Weights:
    """The arrays of an autoencoder in one form for all formats.

    W_enc: (D, S). W_dec: (S, D), a row for each feature. b_enc: (S,). b_dec: (D,). threshold: (S,), or None for no
    thresholds. W_skip: (D, D), with which a transcoder adds `x W_skip` to its output, or None.
    """

    W_enc: jax.Array
    W_dec: jax.Array
    b_enc: jax.Array
    b_dec: jax.Array
    threshold: jax.Array | None = None
    W_skip: jax.Array | None = None
    settings: Settings = struct.field(pytree_node=False, default=Settings())

    def latent_scale(self) -> jax.Array | None:
        """What latents are divided by before decoding, (S,): the norms of the decoder's rows where the format
        multiplies pre-activations by them; None elsewhere."""
        return jnp.linalg.norm(self.W_dec, axis=1) if self.settings.rescale_by_decoder_norm else None


@struct.dataclass
class TrainedWeights:
    """What is trained: encoder and decoder (S, D), a row for each latent; b_enc (S,); b_dec (D,). All float32."""

    encoder: jax.Array
    decoder: jax.Array
    b_enc: jax.Array
    b_dec: jax.Array

    def weights(self, k: int) -> Weights:
        """As the weights of an `Autoencoder` that subtracts `b_dec` from its input and keeps k latents."""
        settings = Settings("topk", k, subtract_b_dec=True)
        return Weights(self.encoder.T, self.decoder, self.b_enc, self.b_dec, settings=settings)


def normalise_rows(x: jax.Array, kind: Normalisation) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x (N, D) normalised, with the mean and the scale (N, 1) that undo it: `normalised · scale + mean`, up to 1e-5."""
    if kind == "none":
        return x, jnp.zeros((len(x), 1)), jnp.ones((len(x), 1))
    mean = x.mean(axis=-1, keepdims=True)
    scale = x.std(axis=-1, keepdims=True, ddof=1)
    return (x - mean) / (scale + _LAYER_NORM_EPSILON), mean, scale

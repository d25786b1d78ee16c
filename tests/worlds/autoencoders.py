"""Small autoencoders with random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.weights import Settings, Weights

WIDTH, LATENTS = 12, 96


def make_autoencoder(
    settings: Settings, *, threshold: float | None = None, skip: bool = False, size: int = LATENTS, width: int = WIDTH
) -> Autoencoder:
    """Random weights; thresholds scatter about `threshold`."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    weights = Weights(
        W_enc=normal(width, size),
        W_dec=normal(size, width),
        b_enc=normal(size),
        b_dec=normal(width),
        threshold=None if threshold is None else threshold + 0.1 * normal(size),
        W_skip=normal(width, width) if skip else None,
        settings=settings,
    )
    return Autoencoder(weights, layer=1, name="tiny")

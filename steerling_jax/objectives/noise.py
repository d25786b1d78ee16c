"""Noise: how much of each diffusion block is masked, and what a masked position may see.

Legend: B sequences, T positions, n diffusion blocks in a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from steerling_jax.errors import require, require_share
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.parallel.mesh import constrain

Distribution = Literal["uniform", "gaussian"]


@dataclass(frozen=True)
class NoiseConfig:
    """distribution: 'uniform' in (0, 1], or 'gaussian' with a centre that moves over training (the published
    curriculum).

    clean_context: each block is denoised after *clean* earlier blocks, as in inference, by running a clean and a
    noisy copy together; otherwise one noisy copy is run (published), at half the cost, and earlier blocks are noisy
    too.
    floor: smallest level; it bounds the weight 1/t.
    """

    distribution: Distribution = "uniform"
    clean_context: bool = False
    floor: float = 0.02
    centre: tuple[float, float] = (0.2, 0.8)
    sigma: float = 0.3

    def __post_init__(self) -> None:
        require(
            self.distribution in get_args(Distribution),
            f"noise.distribution is {self.distribution!r}, but it must be {' or '.join(get_args(Distribution))}.",
        )
        require_share("noise.floor", self.floor)
        require(self.sigma > 0, f"noise.sigma is {self.sigma}, but it must be positive.")


def noise_levels(key: jax.Array, shape: tuple[int, int], progress: jax.Array, noise: NoiseConfig) -> jax.Array:
    """Levels t (B, n) in [floor, 1]. Stratified over each sequence and over the batch: every step sees the whole range,
    and about as many positions are masked in every sequence, which has a fixed number of rows for them.

    progress in [0, 1) moves the centre of the gaussian.
    """
    B, n = shape
    order_key, fine_key, offset_key = jax.random.split(key, 3)
    # Of n strata each block of a sequence takes one, and of a stratum's B parts each sequence one.
    stratum = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
    part = jnp.take_along_axis(jnp.argsort(jax.random.uniform(fine_key, shape), axis=0), stratum, axis=1)
    strata = constrain((stratum + (part + jax.random.uniform(offset_key, shape)) / B) / n, (None, None))
    if noise.distribution == "gaussian":
        start, end = noise.centre
        centre = start + (end - start) * progress
        # The quantile function keeps the draw stratified; what falls outside (0, 1] is clipped, as published.
        strata = centre + noise.sigma * jax.scipy.stats.norm.ppf(jnp.clip(strata, 1e-4, 1 - 1e-4))
    return jnp.clip(strata, noise.floor, 1.0)


def mask_tokens(
    key: jax.Array, tokens: jax.Array, levels: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Masks tokens (B, T) with the probability of their block, levels (B, n). Returns noisy tokens and the mask,
    (B, T).
    """
    per_token = jnp.repeat(levels, config.diff_block_size, axis=1)[:, : tokens.shape[1]]
    masked = jax.random.uniform(key, tokens.shape) < per_token
    return jnp.where(masked, config.mask_token_id, tokens), masked


def two_copy_mask(length: int, block: int) -> jax.Array:
    """Boolean (2T, 2T) for [clean, noisy]: clean is block-causal; noisy sees its own block and clean earlier blocks.

    The definition that `attend_two_copies` computes without building it.
    """
    number = jnp.arange(length) // block
    query, key = number[:, None], number[None, :]
    nothing = jnp.zeros((length, length), bool)
    return jnp.block([[query >= key, nothing], [query > key, query == key]])


def expected_masked_share(noise: NoiseConfig) -> float:
    """The share of positions that is masked over a whole run: the mean of the noise levels (`noise.noise_levels`)."""
    steps = 200
    middles = [(i + 0.5) / steps for i in range(steps)]
    if noise.distribution == "uniform":
        levels = middles
    else:
        (start, end), normal = noise.centre, NormalDist()
        spread = [noise.sigma * normal.inv_cdf(p) for p in middles]
        levels = [start + (end - start) * progress + offset for progress in middles for offset in spread]
    return sum(min(max(level, noise.floor), 1.0) for level in levels) / len(levels)

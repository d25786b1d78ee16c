"""The noise of masked diffusion: noise levels of diffusion blocks, and the masking of tokens at these levels.

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
    """Settings of the noise.

    distribution: of the noise levels; 'uniform' in (0, 1], or 'gaussian' with a centre that moves over training (the
    published curriculum).
    clean_context: denoise each block after *clean* earlier blocks, as inference does, by running a clean and a noisy
    copy of the text together. Without it one noisy copy is run (published): half the cost, but earlier blocks are noisy
    too.
    floor: the smallest level, which bounds the weight 1/t.
    centre: of the gaussian, at the start and at the end of training; sigma: its standard deviation.
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
    """Draws the levels t of all blocks, (B, n) float32 in [floor, 1]; progress in [0, 1) moves the gaussian's centre.

    The levels are stratified over each sequence and over the batch. So every step covers the whole range, which lowers
    the variance of the loss, and all sequences have about the same number of masked positions, which matters because
    each has a fixed number of rows for them.
    """
    B, n = shape
    order_key, fine_key, offset_key = jax.random.split(key, 3)
    # The range is divided into n strata and each stratum into B parts. Each block of a sequence gets another stratum,
    # and each sequence another part of it. One random offset for the batch makes every level uniform.
    stratum = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
    part = jnp.take_along_axis(jnp.argsort(jax.random.uniform(fine_key, shape), axis=0), stratum, axis=1)
    strata = constrain((stratum + (part + jax.random.uniform(offset_key, shape)) / B) / n, (None, None))
    if noise.distribution == "gaussian":
        start, end = noise.centre
        centre = start + (end - start) * progress
        # The quantile function keeps the draw stratified. Levels outside (0, 1] are clipped, as published.
        strata = centre + noise.sigma * jax.scipy.stats.norm.ppf(jnp.clip(strata, 1e-4, 1 - 1e-4))
    return jnp.clip(strata, noise.floor, 1.0)


def mask_tokens(
    key: jax.Array, tokens: jax.Array, levels: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Masks each of tokens (B, T) with the probability of its block, levels (B, n).

    Returns the noisy tokens (B, T) int32 and what was masked, (B, T) bool.
    """
    per_token = jnp.repeat(levels, config.diff_block_size, axis=1)[:, : tokens.shape[1]]
    masked = jax.random.uniform(key, tokens.shape) < per_token
    return jnp.where(masked, config.mask_token_id, tokens), masked


def expected_masked_share(noise: NoiseConfig) -> float:
    """The share of positions that are masked over a whole run: the mean of `noise_levels` over training."""
    steps = 200
    middles = [(i + 0.5) / steps for i in range(steps)]
    if noise.distribution == "uniform":
        levels = middles
    else:
        (start, end), normal = noise.centre, NormalDist()
        spread = [noise.sigma * normal.inv_cdf(p) for p in middles]
        levels = [start + (end - start) * progress + offset for progress in middles for offset in spread]
    return sum(min(max(level, noise.floor), 1.0) for level in levels) / len(levels)

"""The geometric median of rows: a centre that a few rows of extreme norm do not move."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_STEPS = 50


def geometric_median(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """The point (D,) with the smallest sum of distances to rows (N, D), each weighted by weight (N,) ≥ 0.

    By Weiszfeld's iteration, which replaces the point by the mean of the rows weighted by their inverse distances.
    """

    def step(_: int, point: jax.Array) -> jax.Array:
        # The floor keeps a row that the point meets from taking all the weight.
        near = weight / jnp.maximum(jnp.linalg.norm(rows - point[None, :], axis=1), 1e-6)
        return near @ rows / jnp.maximum(jnp.sum(near), 1e-12)

    mean = weight @ rows / jnp.maximum(jnp.sum(weight), 1e-12)
    return jax.lax.fori_loop(0, _STEPS, step, mean)

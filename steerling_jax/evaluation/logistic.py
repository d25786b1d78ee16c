"""Logistic regression on dense features, for concepts learned from a few examples.

Legend: N texts, F features, C concepts.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_STEPS = 300
_RATE = 0.05


class Logistic(NamedTuple):
    """weights (F, C) and bias (C,), float32. The score of x is x · weights + bias; its sigmoid is a probability for
    examples of either kind in equal number."""

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N, F) to (N, C), by NumPy alone, so that workers need no JAX."""
        return features @ self.weights + self.bias


def fit_logistic(features: np.ndarray, positive: np.ndarray, used: np.ndarray, decay: float = 1e-3) -> Logistic:
    """Learns from features (N, F), positive (N, C) bool and used (N, C) bool: which texts count for which concept.

    For each concept, its positive and its other texts weigh the same in total. `decay` is the weight of ‖weights‖².
    Deterministic. Every concept needs a text of either kind.
    """
    positive, used = np.asarray(positive, bool), np.asarray(used, bool)
    weight = np.zeros(positive.shape, np.float32)
    for kind in (positive & used, ~positive & used):
        weight += kind * (0.5 / np.maximum(kind.sum(axis=0), 1)).astype(np.float32)
    fitted = _fit(jnp.asarray(features, jnp.float32), jnp.asarray(positive, jnp.float32), jnp.asarray(weight), decay)
    return Logistic(*(np.asarray(value) for value in fitted))


@partial(jax.jit, static_argnames="decay")
def _fit(features: jax.Array, positive: jax.Array, weight: jax.Array, decay: float) -> tuple[jax.Array, jax.Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))
    start = (jnp.zeros((features.shape[1], positive.shape[1])), jnp.zeros(positive.shape[1]))

    def loss(values: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores = features @ values[0] + values[1][None, :]
        nats = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(scores, positive))
        return nats + decay * jnp.sum(values[0] ** 2)

    def step(carry, _):
        values, state = carry
        updates, state = optimizer.update(jax.grad(loss)(values), state)
        return (optax.apply_updates(values, updates), state), None

    (values, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_STEPS)
    return values  # type: ignore[return-value]

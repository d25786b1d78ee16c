"""Coordinates of hidden rows in which distances are distances of next-token distributions.

A small change δ of a hidden row after the final norm moves the model's distribution by KL ≈ ½ δᵀ F δ, where F is the
Fisher information of the row's logits. In the coordinates x̃ = A x with A² the mean F of many rows (plus a little of the
identity), the squared error of a reconstruction is therefore, on average, the divergence that it causes: an
autoencoder that is trained there on reconstruction spends its features on what changes predictions.

Legend: N rows, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.weights import Weights
from steerling_jax.models.output_projection import OutputProjection, cap_logits

_ROWS = 64  # rows whose logits are in memory at a time
_DAMPING = 0.02  # the part of the identity in A², in units of F's mean eigenvalue


class OutputMetric(NamedTuple):
    """to: A (D, D), symmetric. back: its inverse. usage: (V,) float32, the mean distribution of the model."""

    to: jax.Array
    back: jax.Array
    usage: jax.Array

    def projection(self, projection: OutputProjection) -> OutputProjection:
        """The output projection for rows in these coordinates: the same logits."""
        return projection._replace(table=jnp.dot(projection.table.astype(jnp.float32), self.back, precision="highest"))

    def weights(self, weights: Weights) -> Weights:
        """An autoencoder of rows in these coordinates as one of the hidden rows themselves: the same latents."""
        to, back = (np.asarray(a, np.float64) for a in (self.to, self.back))
        return dataclasses.replace(
            weights,
            W_enc=jnp.asarray(to @ np.asarray(weights.W_enc, np.float64), jnp.float32),
            W_dec=jnp.asarray(np.asarray(weights.W_dec, np.float64) @ back, jnp.float32),
            b_dec=jnp.asarray(np.asarray(weights.b_dec, np.float64) @ back, jnp.float32),
        )


def output_metric(projection: OutputProjection, rows: jax.Array | np.ndarray, size: float) -> OutputMetric:
    """The metric of hidden rows (N, D), scaled so that centred rows have the mean squared length `size` in it."""
    usage, information = jax.device_get(_mean_information(projection, jnp.asarray(rows, jnp.float32)))
    values, vectors = np.linalg.eigh(information.astype(np.float64))
    values = np.maximum(values, 0.0)
    values = values + _DAMPING * values.mean() + 1e-30
    centred = np.asarray(rows, np.float64) - np.asarray(rows, np.float64).mean(axis=0)
    scale = np.sqrt(size / np.maximum(((centred @ vectors) ** 2 @ values).mean(), 1e-30))
    roots = np.sqrt(values) * scale
    to, back = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    return OutputMetric(jnp.asarray(to, jnp.float32), jnp.asarray(back, jnp.float32), jnp.asarray(usage))


@jax.jit
def _mean_information(projection: OutputProjection, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean distribution (V,), and the mean Fisher information (D, D): E[Jᵀ (diag p − p pᵀ) J], where J is the
    table, times the cap's slope."""
    table, cap = projection.table.astype(jnp.float32), projection.cap

    def of_rows(carry: tuple[jax.Array, ...], part: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, ...], None]:
        usage, second, outer = carry
        x, counted = part
        logits, slope = cap_logits(x @ table.T, cap)
        p = jax.nn.softmax(logits, axis=1) * counted[:, None]
        mean = (p * slope) @ table
        carry = (usage + jnp.sum(p, axis=0), second + jnp.sum(p * slope**2, axis=0), outer + mean.T @ mean)
        return carry, None

    N, (V, D) = len(rows), table.shape
    padding = -N % _ROWS
    parts = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, _ROWS, D)
    counted = jnp.pad(jnp.ones(N), (0, padding)).reshape(-1, _ROWS)
    start = (jnp.zeros(V), jnp.zeros(V), jnp.zeros((D, D)))
    usage, second, outer = lax.scan(of_rows, start, (parts, counted))[0]
    return usage / N, (table.T @ (second[:, None] * table) - outer) / N

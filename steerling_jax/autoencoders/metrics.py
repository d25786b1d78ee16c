"""How good an autoencoder is: the part of the variance that it leaves, its sparsity, and what it costs the model.

Legend: N rows, S latents, B windows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.edits import LayerEdit


class Reconstruction(NamedTuple):
    """Figures of an autoencoder on rows x. output: (N, D) float32, x̂. unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖². l0: mean
    latents kept of a row. density, largest: (S,), the share of the rows in which each latent is kept, and its largest
    value."""

    output: np.ndarray
    unexplained: float
    l0: float
    density: np.ndarray
    largest: np.ndarray

    @property
    def dead(self) -> float:
        """The share of the latents that no row keeps."""
        return float((self.density == 0).mean())


def reconstruction(autoencoder: Autoencoder, rows: np.ndarray, batch: int = 1024) -> Reconstruction:
    """The figures of an autoencoder on rows (N, D)."""
    S = autoencoder.n_latents
    counts, largest, output = np.zeros(S), np.zeros(S, np.float32), np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        latents = autoencoder.encode(part)
        output[start : start + batch] = autoencoder.reconstruct(part, latents)
        values, indices = (np.asarray(a) for a in latents)
        counts += np.bincount(indices[values > 0], minlength=S)
        np.maximum.at(largest, indices.reshape(-1), values.reshape(-1))
    variance = float(((rows - rows.mean(axis=0, dtype=np.float64)) ** 2).sum())
    error = float(((output.astype(np.float64) - rows) ** 2).sum())
    return Reconstruction(output, error / variance, float(counts.sum() / len(rows)), counts / len(rows), largest)


class SplicedLosses(NamedTuple):
    """Mean losses of a model, in nats a token, with a block's output as it is, reconstructed, zero, and the mean."""

    model: float
    reconstructed: float
    zero: float
    mean: float

    def recovered(self, against: float) -> float:
        """The share of the loss between `against` (`zero` or `mean`) and the model's that reconstruction gives back."""
        return (against - self.reconstructed) / (against - self.model)


@partial(jax.jit, static_argnames=("backbone",))
def loss_with_output(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    counted: jax.Array,
    push: jax.Array,
    layer: jax.Array,
    *,
    backbone: Backbone,
) -> jax.Array:
    """The summed loss () of targets (B, T) where `counted` (B, T) is 1, with `push` (B, T, D) added to the output of
    block `layer` () for tokens (B, T)."""
    edit = LayerEdit(push=push[None], layers=jnp.arange(backbone.n_layers) == layer)
    hidden = backbone.run(params, backbone.embed(params, tokens), edits=(edit,)).hidden

    def of_window(window: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        rows, target, weight = window
        losses = optax.softmax_cross_entropy_with_integer_labels(backbone.logits(params, rows), target)
        return jnp.sum(losses * weight)

    return jnp.sum(lax.map(of_window, (hidden, targets, counted)))  # a window's logits (T, V) at a time

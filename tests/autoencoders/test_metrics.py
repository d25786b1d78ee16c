"""The figures of an autoencoder, where the right values are known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import steerling_jax as sj
from steerling_jax.autoencoders.metrics import SplicedLosses, reconstruction
from steerling_jax.autoencoders.weights import Settings, Weights

D = 6


def signed_axes(k: int) -> sj.Autoencoder:
    """Two latents for each axis, one for each sign: exact with k = D."""
    both = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    zeros = jnp.zeros
    return sj.Autoencoder(
        Weights(jnp.asarray(both.T), jnp.asarray(both), zeros(2 * D), zeros(D), settings=Settings(k=k))
    )


def test_reconstruction():
    rows = np.random.default_rng(0).normal(size=(2500, D)).astype(np.float32)
    exact = reconstruction(signed_axes(D), rows)
    assert exact.unexplained < 1e-10
    assert exact.l0 == D
    np.testing.assert_allclose(exact.density.sum(), D, rtol=1e-6)
    np.testing.assert_allclose(exact.density[:D], (rows > 0).mean(axis=0), rtol=1e-6)
    assert exact.dead == 0
    # With k = 1 the largest entry of each row is kept.
    one = reconstruction(signed_axes(1), rows)
    left = (rows**2).sum() - (np.abs(rows).max(axis=1) ** 2).sum()
    np.testing.assert_allclose(one.unexplained, left / ((rows - rows.mean(0)) ** 2).sum(), rtol=1e-5)
    positive = reconstruction(signed_axes(D), np.abs(rows))
    assert positive.dead == 0.5


def test_loss_recovered():
    losses = SplicedLosses(model=2.0, reconstructed=2.5, zero=12.0, mean=4.0)
    assert losses.recovered(losses.zero) == 0.95
    assert losses.recovered(losses.mean) == 0.75

"""AuxK, the loss that trains dead latents, and its gradients (Gao et al., 2024).

Legend: N rows, D width, S latents of a device, M dead latents offered in a step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.autoencoders.share import Share
from steerling_jax.autoencoders.weights import TrainedWeights


def auxiliary_loss(
    trained: TrainedWeights,
    x: jax.Array,
    target: jax.Array,
    counted: jax.Array,
    variance: jax.Array,
    dead: jax.Array,
    step: jax.Array,
    k_aux: int,
    max_dead: int,
    share: Share,
) -> tuple[jax.Array, TrainedWeights]:
    """AuxK and its gradients by a device's latents, dense over the M = `max_dead` latents that are offered.

    dead: of all latents. All devices with the same rows handle the same M latents, each with its own rows of the
    weights and 0 for those of the others: which are among the k_aux largest depends on all of them.
    """
    total, S = dead.shape[0], trained.b_enc.shape[0]
    # Another part of the dead ones each step, if there are more than are offered.
    first = (step * max_dead) % total
    offered = (jnp.nonzero(jnp.roll(dead, -first), size=max_dead, fill_value=total)[0] + first) % total
    valid = jnp.arange(max_dead) < jnp.sum(dead)
    mine, read, write = share.own(offered, S)
    valid = valid if mine is None else valid & mine
    encoder, decoder = trained.encoder[read], jnp.where(valid[:, None], trained.decoder[read], 0.0)
    scale = jnp.minimum(jnp.sum(dead) / k_aux, 1.0)
    centred = x - trained.b_dec[None]
    pre = jax.nn.relu(centred @ encoder.T + trained.b_enc[read][None])
    pre = share.over_latents(jnp.where(valid[None], pre, 0.0))
    least = lax.top_k(pre, min(k_aux, max_dead))[0][:, -1:]
    kept = jnp.where(pre >= least, pre, 0.0)
    error = counted * (share.over_latents(kept @ decoder) - target)
    loss = scale * share.over_rows(jnp.sum(error**2)) / variance
    to_output = 2.0 * scale / variance * error
    to_latents = jnp.where((kept > 0) & valid[None], to_output @ decoder.T, 0.0)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    # Latents that are not valid have no gradient, so it does not matter which they are.
    decoder_gradient = jnp.where(valid[:, None], kept.T @ to_output, 0.0)
    return loss, TrainedWeights(
        encoder=zeros.encoder.at[write].add(share.over_rows(to_latents.T @ centred)),
        decoder=zeros.decoder.at[write].add(share.over_rows(decoder_gradient)),
        b_enc=zeros.b_enc.at[write].add(share.over_rows(jnp.sum(to_latents, axis=0))),
        b_dec=zeros.b_dec,
    )

"""AuxK, the loss that trains dead latents, and its gradients (Gao et al., 2024).

Legend: N rows, D width, S latents of a device, M dead latents offered in a step.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.autoencoders.share import Share
from steerling_jax.autoencoders.weights import TrainedWeights
from steerling_jax.parallel.row_chunks import over_rows

_ABOVE_INFINITY = 0x7F800001  # the bits that follow those of the largest float32
_CHUNK = 256  # rows in which a value is counted 31 times: they stay in a CPU's cache


class AuxiliaryGradients(NamedTuple):
    """Gradients of AuxK by the M latents that were offered. write: (M,) int32, their numbers, distinct; S and above for
    those that have no gradient here. encoder and decoder: (M, D). b_enc: (M,)."""

    write: jax.Array
    encoder: jax.Array
    decoder: jax.Array
    b_enc: jax.Array

    def added_to(self, gradients: TrainedWeights, factor: float) -> TrainedWeights:
        """`gradients`, by all latents, plus `factor` times these. Numbers from S on are dropped by the scatter."""

        def added(table: jax.Array, rows: jax.Array) -> jax.Array:
            return table.at[self.write].add(factor * rows, mode="drop", unique_indices=True)

        return dataclasses.replace(
            gradients,
            encoder=added(gradients.encoder, self.encoder),
            decoder=added(gradients.decoder, self.decoder),
            b_enc=added(gradients.b_enc, self.b_enc),
        )


def no_gradients(trained: TrainedWeights, max_dead: int) -> AuxiliaryGradients:
    """The gradients of AuxK where no latent is dead."""
    S, D = trained.encoder.shape
    rows = jnp.zeros((max_dead, D))
    return AuxiliaryGradients(S + jnp.arange(max_dead), rows, rows, jnp.zeros(max_dead))


def kth_largest(values: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row of `values` (N, M) float32, none negative, as (N,).

    Floats that are not negative are ordered as their bits are, so 31 bisections of the bits find it exactly: counting
    is parallel on a CPU and sorting is not, which here makes it 20 times as fast as `lax.top_k`.
    """

    def of_rows(rows: jax.Array) -> jax.Array:
        bits = lax.bitcast_convert_type(rows, jnp.int32)

        def bisect(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends  # at least k values are ≥ low, fewer than k are ≥ high
            middle = low + (high - low) // 2
            enough = jnp.sum(bits >= middle[:, None], axis=1) >= k
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        beyond = jnp.full(len(rows), _ABOVE_INFINITY, jnp.int32)
        low, _ = lax.fori_loop(0, 31, bisect, (jnp.zeros_like(beyond), beyond))
        return lax.bitcast_convert_type(low, jnp.float32)

    return over_rows(of_rows, values, _CHUNK)


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
) -> tuple[jax.Array, AuxiliaryGradients]:
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
    write = jnp.where(valid, write, S + jnp.arange(max_dead))
    encoder, decoder = trained.encoder[read], jnp.where(valid[:, None], trained.decoder[read], 0.0)
    scale = jnp.minimum(jnp.sum(dead) / k_aux, 1.0)
    centred = x - trained.b_dec[None]
    pre = jax.nn.relu(centred @ encoder.T + trained.b_enc[read][None])
    pre = share.over_latents(jnp.where(valid[None], pre, 0.0))
    least = kth_largest(pre, min(k_aux, max_dead))
    kept = jnp.where(pre >= least[:, None], pre, 0.0)
    error = counted * (share.over_latents(kept @ decoder) - target)
    loss = scale * share.over_rows(jnp.sum(error**2)) / variance
    to_output = 2.0 * scale / variance * error
    to_latents = jnp.where((kept > 0) & valid[None], to_output @ decoder.T, 0.0)
    return loss, AuxiliaryGradients(
        write,
        encoder=share.over_rows(to_latents.T @ centred),
        decoder=share.over_rows(kept.T @ to_output),
        b_enc=share.over_rows(jnp.sum(to_latents, axis=0)),
    )

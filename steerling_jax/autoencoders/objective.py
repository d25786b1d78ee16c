"""The training objective of a TopK autoencoder, and its gradients, computed through the k latents that a row keeps.

    loss = unexplained variance + weight · AuxK,        or another loss of the output x̂ in place of the variance

*Unexplained variance* is Σ‖x − x̂‖² / Σ‖x − mean‖². *AuxK* (Gao et al., 2024) lets the largest dead latents of each row
reconstruct what the others leave over, x − x̂, so that dead latents are trained too, encoder and decoder both.

The gradients are written out, and not derived by JAX: of a row's S latents only k have one, and each weight gradient is
a sum over N · k rows of a matrix. The products that automatic differentiation would make cost S / k times as much.

On a mesh, each device has a part of the latents and of the rows (`Share`). The k latents of a row are chosen among
those of all devices; each device then adds to x̂ what its own latents give, and computes the gradients of its own.

Legend: N rows, D width, S latents (on a mesh those of a device), k latents kept of each row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.autoencoders.dead_latents import AuxiliaryGradients, auxiliary_loss, no_gradients
from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.share import Share
from steerling_jax.autoencoders.weights import TrainedWeights, Weights
from steerling_jax.parallel.best_of_devices import best_of_devices
from steerling_jax.parallel.mesh import current_mesh, partition_spec
from steerling_jax.parallel.row_chunks import over_rows

_GATHERED = 16  # rows whose k decoder rows are gathered at a time: more would not stay in a CPU's cache
_DENSE = 256  # rows of one dense product on an accelerator
_TINY = 1e-12  # of a variance, so that equal rows do not divide by 0

# From x̂ (N, D) to the loss of each row (N,) and its gradient by x̂ (N, D).
OutputLoss = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class LossParts(NamedTuple):
    """unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖². auxiliary: the same of AuxK and its target x − x̂, times the share of its
    latents that are dead; 0 without dead ones. output: the loss of x̂ that the gradients are of, `unexplained` unless
    another one is given. fired: (S,) bool, the latents that were kept with a positive value."""

    unexplained: jax.Array
    auxiliary: jax.Array
    output: jax.Array
    fired: jax.Array


def loss_and_gradients(
    trained: TrainedWeights,
    x: jax.Array,
    row_weights: jax.Array,
    dead: jax.Array,
    step: jax.Array,
    *,
    output_loss: OutputLoss | None = None,
    **settings: Any,
) -> tuple[LossParts, TrainedWeights]:
    """The parts of the loss, and the gradients of `output + aux_weight · auxiliary`; arguments as of
    `share_of_gradients`. On a mesh, latents are sharded over `tensor` and rows over the other axes."""
    mesh = current_mesh()
    if mesh is None or output_loss is not None:
        return share_of_gradients(trained, x, row_weights, dead, step, Share(), output_loss=output_loss, **settings)
    (latents,) = partition_spec(("concepts",), trained.b_enc.shape, mesh)
    (rows,) = partition_spec(("batch",), row_weights.shape, mesh)
    assert latents is None or isinstance(latents, str)
    own, whole, of_rows = PartitionSpec(latents), PartitionSpec(), PartitionSpec(rows)
    weights = TrainedWeights(own, own, own, whole)  # pyright: ignore[reportArgumentType]
    parts = LossParts(whole, whole, whole, own)  # pyright: ignore[reportArgumentType]
    # The check cannot see that sums over the devices are equal on all of them.
    mapped = jax.shard_map(
        partial(share_of_gradients, share=Share(latents, rows), **settings),
        mesh=mesh,
        in_specs=(weights, of_rows, of_rows, own, whole),
        out_specs=(parts, weights),
        check_vma=False,
    )
    return mapped(trained, x, row_weights, dead, step)


def share_of_gradients(
    trained: TrainedWeights,
    x: jax.Array,
    row_weights: jax.Array,
    dead: jax.Array,
    step: jax.Array,
    share: Share,
    *,
    k: int,
    k_aux: int,
    max_dead: int,
    aux_weight: float,
    output_loss: OutputLoss | None = None,
) -> tuple[LossParts, TrainedWeights]:
    """The parts of the loss, and the gradients of `output + aux_weight · auxiliary` by a device's latents.

    x: (N, D) float32. row_weights: (N,), 0 for rows that do not count, else 1. dead: (S,) bool. step: () int32, which
    decides which dead latents are offered where more than `max_dead` are dead. k_aux: dead latents kept of each row.
    output_loss: of which the mean over the rows is taken; None for the unexplained variance.
    """
    counted, count = row_weights[:, None], jnp.maximum(share.over_rows(jnp.sum(row_weights)), 1.0)
    mean = share.over_rows(jnp.sum(counted * x, axis=0)) / count
    variance = jnp.maximum(share.over_rows(jnp.sum(counted * (x - mean[None]) ** 2)), _TINY)
    weights, S = trained.weights(k), trained.b_enc.shape[0]
    values, index = _encode(weights, x, k, share)
    mine, read, write = share.own(index, S)
    values = values if mine is None else jnp.where(mine, values, 0.0)
    own_part = dataclasses.replace(weights, b_dec=share.once(weights.b_dec))
    output = share.over_latents(decode_rows(own_part, values, read))
    error = counted * (output - x)
    fired = jnp.zeros(S, bool).at[write].max((values > 0) & (counted > 0))
    fired = fired if share.rows is None else share.over_rows(fired.astype(jnp.int32)) > 0
    unexplained = share.over_rows(jnp.sum(error**2)) / variance
    loss, to_output = unexplained, 2.0 / variance * error  # the derivative by x̂, (N, D)
    if output_loss is not None:
        by_row, to_output = output_loss(output)
        loss, to_output = jnp.sum(row_weights * by_row) / count, counted * to_output / count
    parts = LossParts(unexplained, jnp.zeros(()), loss, fired)

    to_latents = jnp.where(values > 0, _gathered_products(trained.decoder, read, to_output), 0.0)
    b_enc = share.over_rows(jnp.zeros(S).at[write].add(to_latents))
    gradients = TrainedWeights(
        encoder=share.over_rows(_scattered_rows(write, to_latents, x - trained.b_dec[None], S)),
        decoder=share.over_rows(_scattered_rows(write, values, to_output, S)),
        b_enc=b_enc,
        # b_dec is added to the output, and subtracted from what the encoder reads.
        b_dec=share.over_rows(jnp.sum(to_output, axis=0)) - share.over_latents(b_enc @ trained.encoder),
    )
    dead = share.all_latents(dead)

    def with_auxiliary() -> tuple[jax.Array, AuxiliaryGradients]:
        return auxiliary_loss(trained, x, -error, counted, variance, dead, step, k_aux, max_dead, share)

    # `dead` of all latents is the same on all devices, so that all take the same branch and none waits for the others.
    # The branches return few rows: tables of all latents would be copied out of them.
    auxiliary, extra = lax.cond(jnp.any(dead), with_auxiliary, lambda: (jnp.zeros(()), no_gradients(trained, max_dead)))
    return parts._replace(auxiliary=auxiliary), extra.added_to(gradients, aux_weight)


def _encode(weights: Weights, x: jax.Array, k: int, share: Share) -> tuple[jax.Array, jax.Array]:
    """The values and the numbers (N, k), among all latents, of the k largest of all devices."""
    S = weights.b_enc.shape[0]
    values, index = encode_rows(weights, x, min(k, S))
    if share.latents is None:
        return values, index
    return best_of_devices(values, index + lax.axis_index(share.latents) * S, k, share.latents)


def _gathered_products(table: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
    """⟨table[index[n, j]], rows[n]⟩ for table (S, D), index (N, k) and rows (N, D), (N, k): a few rows at a time, since
    all gathered rows together would be an array (N, k, D)."""

    def products(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.einsum("nkd,nd->nk", table[part[0]], part[1], precision=lax.Precision.HIGHEST)

    return over_rows(products, (index, rows), _GATHERED)


def _scattered_rows(index: jax.Array, factors: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """(S, D): for every n and j, factors[n, j] · rows[n] added to the row index[n, j]."""

    def by_row() -> jax.Array:
        # A row's latents are distinct, so their sums are independent and XLA updates the table in place.
        def add(total: jax.Array, row: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            where, factor, values = row
            return total.at[where].add(factor[:, None] * values[None], unique_indices=True), None

        return lax.scan(add, jnp.zeros((size, rows.shape[1])), (index, factors, rows))[0]

    def by_product() -> jax.Array:
        def add(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            where, factor, values = part
            dense = jnp.zeros((len(where), size)).at[jnp.arange(len(where))[:, None], where].add(factor)
            return total + dense.T @ values, None

        padding = ((0, -len(index) % _DENSE), (0, 0))
        where, factor, values = (jnp.pad(a, padding).reshape(-1, _DENSE, a.shape[1]) for a in (index, factors, rows))
        return lax.scan(add, jnp.zeros((size, rows.shape[1])), (where, factor, values))[0]

    return lax.platform_dependent(cpu=by_row, default=by_product)

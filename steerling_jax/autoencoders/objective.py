"""The training objective of a TopK autoencoder, and its gradients, computed through the k latents that a row keeps.

    loss = unexplained variance + weight · AuxK,        or another loss of the output x̂ in place of the variance

*Unexplained variance* is Σ‖x − x̂‖² / Σ‖x − mean‖². *AuxK* (Gao et al., 2024) lets the largest dead latents of each row
reconstruct what the others leave over, x − x̂, so that dead latents are trained too, encoder and decoder both.

The gradients are written out, and not derived by JAX: of a row's S latents only k have one, and each weight gradient is
a sum over N · k rows of a matrix. The products that automatic differentiation would make cost S / k times as much.

Legend: N rows, D width, S latents, k latents kept of each row, M dead latents offered to AuxK in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.weights import Settings, Weights

_GATHERED = 16  # rows whose k decoder rows are gathered at a time: more would not stay in a CPU's cache
_DENSE = 256  # rows of one dense product on an accelerator
_TINY = 1e-12  # of a variance, so that equal rows do not divide by 0

# From x̂ (N, D) to the loss of each row (N,) and its gradient by x̂ (N, D).
OutputLoss = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@struct.dataclass
class TrainedWeights:
    """What is trained: encoder and decoder (S, D), a row for each latent; b_enc (S,); b_dec (D,). All float32."""

    encoder: jax.Array
    decoder: jax.Array
    b_enc: jax.Array
    b_dec: jax.Array

    def weights(self, k: int) -> Weights:
        """As the weights of an `Autoencoder` that subtracts `b_dec` from its input and keeps k latents."""
        settings = Settings("topk", k, subtract_b_dec=True)
        return Weights(self.encoder.T, self.decoder, self.b_enc, self.b_dec, settings=settings)


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
    k: int,
    k_aux: int,
    max_dead: int,
    aux_weight: float,
    output_loss: OutputLoss | None = None,
) -> tuple[LossParts, TrainedWeights]:
    """The parts of the loss, and the gradients of `output + aux_weight · auxiliary`.

    x: (N, D) float32. row_weights: (N,), 0 for rows that do not count, else 1. dead: (S,) bool. step: () int32, which
    decides which dead latents are offered where more than `max_dead` are dead. k_aux: dead latents kept of each row.
    output_loss: of which the mean over the rows is taken; None for the unexplained variance.
    """
    counted = row_weights[:, None]
    mean = jnp.sum(counted * x, axis=0) / jnp.maximum(jnp.sum(row_weights), 1.0)
    variance = jnp.maximum(jnp.sum(counted * (x - mean[None]) ** 2), _TINY)
    weights = trained.weights(k)
    values, index = encode_rows(weights, x, k)
    output = decode_rows(weights, values, index)
    error = counted * (output - x)
    S = trained.b_enc.shape[0]
    fired = jnp.zeros(S, bool).at[index].max((values > 0) & (counted > 0))
    unexplained = jnp.sum(error**2) / variance
    loss, to_output = unexplained, 2.0 / variance * error  # the derivative by x̂, (N, D)
    if output_loss is not None:
        by_row, to_output = output_loss(output)
        count = jnp.maximum(jnp.sum(row_weights), 1.0)
        loss, to_output = jnp.sum(row_weights * by_row) / count, counted * to_output / count
    parts = LossParts(unexplained, jnp.zeros(()), loss, fired)

    to_latents = jnp.where(values > 0, _gathered_products(trained.decoder, index, to_output), 0.0)
    b_enc = jnp.zeros(S).at[index].add(to_latents)
    gradients = TrainedWeights(
        encoder=_scattered_rows(index, to_latents, x - trained.b_dec[None], S),
        decoder=_scattered_rows(index, values, to_output, S),
        b_enc=b_enc,
        # b_dec is added to the output, and subtracted from what the encoder reads.
        b_dec=jnp.sum(to_output, axis=0) - b_enc @ trained.encoder,
    )

    def with_auxiliary() -> tuple[jax.Array, TrainedWeights]:
        loss, extra = _auxiliary(trained, x, -error, counted, variance, dead, step, k_aux, max_dead)
        return loss, jax.tree.map(lambda a, b: a + aux_weight * b, gradients, extra)

    auxiliary, gradients = lax.cond(jnp.any(dead), with_auxiliary, lambda: (jnp.zeros(()), gradients))
    return parts._replace(auxiliary=auxiliary), gradients


def _auxiliary(
    trained: TrainedWeights,
    x: jax.Array,
    target: jax.Array,
    counted: jax.Array,
    variance: jax.Array,
    dead: jax.Array,
    step: jax.Array,
    k_aux: int,
    max_dead: int,
) -> tuple[jax.Array, TrainedWeights]:
    """AuxK and its gradients. With at most `max_dead` latents a dense computation is cheap, and JAX can derive it."""
    S = dead.shape[0]
    # Another part of the dead ones each step, if there are more than are offered.
    first = (step * max_dead) % S
    offered = (jnp.nonzero(jnp.roll(dead, -first), size=max_dead, fill_value=S)[0] + first) % S
    valid = jnp.arange(max_dead) < jnp.sum(dead)
    rows = TrainedWeights(trained.encoder[offered], trained.decoder[offered], trained.b_enc[offered], trained.b_dec)
    scale = jnp.minimum(jnp.sum(dead) / k_aux, 1.0)

    def loss(rows: TrainedWeights) -> jax.Array:
        pre = jax.nn.relu((x - trained.b_dec[None]) @ rows.encoder.T + rows.b_enc[None])
        pre = jnp.where(valid[None], pre, 0.0)
        least = lax.top_k(lax.stop_gradient(pre), min(k_aux, max_dead))[0][:, -1:]
        output = jnp.where(pre >= least, pre, 0.0) @ rows.decoder
        return scale * jnp.sum(counted * (output - target) ** 2) / variance

    value, found = jax.value_and_grad(loss)(rows)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    # Latents that are not valid have no gradient, so it does not matter which they are.
    return value, TrainedWeights(
        encoder=zeros.encoder.at[offered].add(found.encoder),
        decoder=zeros.decoder.at[offered].add(found.decoder),
        b_enc=zeros.b_enc.at[offered].add(found.b_enc),
        b_dec=zeros.b_dec,
    )


def _gathered_products(table: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
    """⟨table[index[n, j]], rows[n]⟩ for table (S, D), index (N, k) and rows (N, D), (N, k): a few rows at a time, since
    all gathered rows together would be an array (N, k, D)."""
    N, k = index.shape
    padding = ((0, -N % _GATHERED), (0, 0))

    def products(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.einsum("nkd,nd->nk", table[part[0]], part[1], precision=lax.Precision.HIGHEST)

    parts = (
        jnp.pad(index, padding).reshape(-1, _GATHERED, k),
        jnp.pad(rows, padding).reshape(-1, _GATHERED, rows.shape[1]),
    )
    return lax.map(products, parts).reshape(-1, k)[:N]


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

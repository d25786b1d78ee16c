"""The cost in loss of removing known concepts, and of removing as many discovered ones of equal mass.

A known concept that carries what its label names costs more when it is removed than some discovered concept that moves
the logits as far. The mass of a concept at a position is the standard deviation over the vocabulary of the logits that
it adds, `weight · √(E_cᵀ Σ E_c)` with Σ the covariance of the output rows. It depends neither on the true token nor on
what moves all logits together.

Legend: B sequences, T positions, D width, M rows (masked positions), n removed concepts, K listed discovered concepts.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import view_concepts
from steerling_jax.evaluation.bound import Sums, masked_tokens
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, decompose
from steerling_jax.models.steerling.heads import HeadOutput

_EXACT = Compute()


@partial(jax.jit, static_argnames=("config", "compute"))
def equal_mass_sums(
    params: Params, tokens: jax.Array, valid: jax.Array, key: jax.Array, *, config: ModelConfig, compute: Compute
) -> Sums:
    """Sums over one random subset of each block of tokens (B, T) int32, valid (B, T) bool, T a multiple of the block.

    full, without_known, without_discovered: the likelihood bound in nats, as it is and with the concepts removed (all
    else stays). mass_known, mass_discovered: their masses. tokens, masked: counts. The model must have both heads.
    """
    at = masked_tokens(params, tokens, valid, key, config, compute)
    parts = decompose(params, at.rows, config=config, compute=compute)
    assert parts.discovered is not None
    composed = (parts.composed if parts.epsilon is None else at.rows).astype(jnp.float32)
    weights = parts.known.topk_weights
    masses = _masses(params, at.rows, parts.known, "known", config)
    target = jnp.sum(masses, axis=1)
    others = _masses(params, at.rows, parts.discovered, "discovered", config)
    chosen = of_equal_mass(others, target, masses.shape[1])
    discovered = jnp.where(chosen, parts.discovered.topk_weights, 0.0)

    def nats(removed: jax.Array) -> jax.Array:
        return jnp.sum(
            cross_entropy(params, (composed - removed).astype(compute.dtype), at.target, compute) * at.weight
        )

    return {
        "full": nats(jnp.zeros_like(composed)),
        "without_known": nats(_vectors(params, at.rows, parts.known, weights, "known", config)),
        "without_discovered": nats(_vectors(params, at.rows, parts.discovered, discovered, "discovered", config)),
        "mass_known": jnp.sum(target * at.valid),
        "mass_discovered": jnp.sum(jnp.sum(jnp.where(chosen, others, 0.0), axis=1) * at.valid),
        "tokens": jnp.sum(valid),
        "masked": at.masked,
    }


def of_equal_mass(masses: jax.Array, target: jax.Array, count: int) -> jax.Array:
    """Which `count` of the masses (M, K) ≥ 0 to choose so that they add up to about the target (M,), as bool (M, K).

    Chosen are neighbours in the order of size, because of all such sets these are of the most alike masses; where there
    are no more than `count`, all are chosen.
    """
    K = masses.shape[1]
    count = min(count, K)
    order = jnp.argsort(-masses, axis=1)
    ordered = jnp.take_along_axis(masses, order, axis=1)
    until = jnp.pad(jnp.cumsum(ordered, axis=1), ((0, 0), (1, 0)))
    windows = until[:, count:] - until[:, : K - count + 1]
    first = jnp.argmin(jnp.abs(windows - target[:, None]), axis=1)[:, None]
    rank = jnp.argsort(order, axis=1)
    return (rank >= first) & (rank < first + count)


def _masses(params: Params, rows: jax.Array, found: HeadOutput, head: Head, config: ModelConfig) -> jax.Array:
    """The masses (M, K) of the listed concepts."""
    view, _ = view_concepts(params, rows[:1].astype(jnp.float32), head, config, _EXACT)
    output = lm_head_weight(params).astype(jnp.float32)
    centred = output - jnp.mean(output, axis=0, keepdims=True)
    covariance = centred.T @ centred / len(output)
    if view.basis is not None:
        covariance = view.basis.T @ covariance @ view.basis
    square = jnp.sum((view.values @ covariance) * view.values, axis=1)
    deviation = jnp.sqrt(jnp.maximum(square, 0.0))
    return jnp.abs(found.topk_weights) * jnp.take(deviation, found.topk_indices)


def _vectors(
    params: Params, rows: jax.Array, found: HeadOutput, weights: jax.Array, head: Head, config: ModelConfig
) -> jax.Array:
    """The sum (M, D) of the listed concepts' vectors with `weights` (M, K)."""
    view, spec = view_concepts(params, rows.astype(jnp.float32), head, config, _EXACT)
    return bn.mix_concepts(view, found.topk_indices, weights, spec.block, _EXACT)

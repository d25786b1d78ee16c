"""The losses of a dictionary of discovered concepts: reconstruction, dead concepts, and the model's own distribution.

Legend: M rows (masked positions), D width, C discovered concepts, m dead concepts that are offered, K selected
concepts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.head_view import HeadView
from steerling_jax.models.steerling.heads import HeadOutput


def unexplained(target: jax.Array, features: jax.Array, valid: jax.Array) -> jax.Array:
    """The share of the variance of target (M, D) that features (M, D) leave, over the rows with valid (M,) = 1; ().

    The variance itself has no gradient.
    """
    target, features = target.astype(jnp.float32), features.astype(jnp.float32)
    weight = valid[:, None]
    left = jnp.sum(weight * jnp.square(target - features))
    mean = jnp.sum(weight * target, axis=0, keepdims=True) / jnp.maximum(jnp.sum(valid), 1.0)
    return left / lax.stop_gradient(jnp.maximum(jnp.sum(weight * jnp.square(target - mean)), 1e-12))


def offer_dead(idle: jax.Array, order: jax.Array, after: int, most: int) -> tuple[jax.Array, jax.Array]:
    """The dead concepts that a step offers to the auxiliary loss: ids (m,) int32, and which of these are dead, (m,).

    idle (C,): for how many steps each concept has not been used; it is dead from `after` on. order (C,): random numbers
    in [0, 1), so that over the steps all of more than m = `most` dead concepts get their turn. Without a limit, a
    dictionary with many dead concepts would cost as much as a dense one.
    """
    score = jnp.where(idle >= after, order, -1.0)
    best, ids = lax.top_k(score, min(most, len(idle)))
    return ids.astype(jnp.int32), best >= 0


def auxiliary_loss(
    view: HeadView, left: jax.Array, valid: jax.Array, ids: jax.Array, dead: jax.Array, k: int, operands: str
) -> jax.Array:
    """The share of `left` (M, D), what the dictionary leaves of the hidden rows, that dead concepts do not explain; ().

    ids, dead (m,): see `offer_dead`. Each row uses the k dead concepts of largest logit. Their keys, biases and
    embeddings get gradients, `left` does not. 0 where no concept is dead.

    Source: AuxK of Gao et al. 2024, Scaling and evaluating sparse autoencoders.
    """
    left = lax.stop_gradient(left.astype(jnp.float32)) * valid[:, None]
    logits = jnp.where(dead[None, :], bn.logits_of_ids(view, ids, operands), -1.0)
    best, at = lax.top_k(logits, min(k, len(ids)))
    weights = bn.scatter_rows(at, view.weights(best), len(ids))
    estimate = (weights @ bn.embeddings(view, ids)) * valid[:, None]
    loss = jnp.sum(jnp.square(left - estimate)) / jnp.maximum(jnp.sum(jnp.square(left)), 1e-12)
    return jnp.where(jnp.any(dead), loss, 0.0)


def uses(head: HeadOutput, valid: jax.Array, n_concepts: int) -> jax.Array:
    """How many of the rows with valid (M,) = 1 have each concept with a weight above 0, (C,) float32."""
    used = (head.topk_weights > 0) * valid[:, None]
    return jnp.zeros(n_concepts).at[head.topk_indices].add(lax.stop_gradient(used))


def next_idle(idle: jax.Array, uses: jax.Array) -> jax.Array:
    """For how many steps no row has used each concept, (C,) int32, after a step with these `uses` (C,)."""
    return jnp.where(uses > 0, 0, idle + 1)


def divergence(params: Params, hidden: jax.Array, features: jax.Array, compute: Compute) -> jax.Array:
    """KL(p ‖ q) in nats, (M,): p is the distribution that hidden (M, D) gives, with no gradient, q that of features."""
    log_p = lax.stop_gradient(jax.nn.log_softmax(lm_logits(params, hidden, compute), axis=-1))
    log_q = jax.nn.log_softmax(lm_logits(params, features, compute), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

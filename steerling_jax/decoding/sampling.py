"""Pure functions on rows of logits: the confidence of a position, and the draw of its token.

The key of a draw is `fold_in(key(seed), position)`: it depends on the seed and the absolute position alone, never on
caching, batching or the step. Source: `generate_full` of the published package.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def confidence(logits_RV: jax.Array) -> jax.Array:
    """The largest probability of each row, (R,) float32."""
    top = jnp.max(logits_RV, axis=-1, keepdims=True)
    return 1.0 / jnp.sum(jnp.exp(logits_RV - top), axis=-1)


def position_key(seed: jax.Array | int, position: jax.Array | int) -> jax.Array:
    """The key of the draw at an absolute position."""
    return jax.random.fold_in(jax.random.key(seed), position)


def entropy_temperature(logits_V: jax.Array, top_p: jax.Array | float, largest: jax.Array | None = None) -> jax.Array:
    """0.3 + 0.4 · min(1, H / ln k), k the size of the nucleus (at least 2), () float32.

    largest: the largest probabilities in descending order, where the caller has as many as are in the nucleus and one
    more; without them the vocabulary is sorted.
    """
    probs = jax.nn.softmax(logits_V)
    descending = jnp.sort(probs)[::-1] if largest is None else largest
    effective = jnp.maximum(jnp.sum(jnp.cumsum(descending) <= top_p) + 1, 2)
    entropy = -jnp.sum(probs * jnp.log(probs + 1e-10))
    return 0.3 + 0.4 * jnp.minimum(1.0, entropy / jnp.log(effective.astype(jnp.float32)))


NO_LIMIT = 2**30  # a top_k beyond any vocabulary


def in_nucleus(
    logits_V: jax.Array, top_p: jax.Array | float, top_k: jax.Array | int = NO_LIMIT
) -> tuple[jax.Array, jax.Array]:
    """Ids (V,) by descending probability, and whether each is in the nucleus, (V,) bool; the first always is.

    top_k: only so many ids are in it, and top_p is a share of their mass.
    """
    order = jnp.argsort(-logits_V)
    probs = jax.nn.softmax(logits_V)[order]
    before = jnp.cumsum(probs) - probs
    first = jnp.arange(len(order)) < top_k
    # Without a limit the mass is 1 exactly, and not a sum that rounds: the published nucleus must not change.
    mass = jnp.where(top_k >= len(order), 1.0, jnp.sum(jnp.where(first, probs, 0.0)))
    return order, (first & (before <= top_p * mass)).at[0].set(True)


def draw(key: jax.Array, logits_V: jax.Array, top_p: jax.Array | float, top_k: jax.Array | int = NO_LIMIT) -> jax.Array:
    """A token id () int32 from the nucleus of logits (V,), already divided by a temperature."""
    order, keep = in_nucleus(logits_V, top_p, top_k)
    # Noise is indexed by id, not by rank: where rounding swaps two ranks, the draw stays the same.
    noise = jax.random.gumbel(key, logits_V.shape)[order]
    return order[jnp.argmax(jnp.where(keep, logits_V[order] + noise, -jnp.inf))].astype(jnp.int32)

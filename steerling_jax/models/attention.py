"""Attention that model families share: grouped queries with a float32 softmax, and block-causal masks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

AttentionPattern = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q, k, v to the attended values


def block_causal_mask(q_positions: jax.Array, k_positions: jax.Array, block: int) -> jax.Array:
    """Boolean (Tq, Tk): a query sees its own diffusion block and all earlier ones, on absolute positions."""
    return (q_positions // block)[:, None] >= (k_positions // block)[None, :]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Grouped scaled dot-product attention with a float32 softmax.

    q (B, T, H, d), k and v (B, S, G, d), mask broadcastable to (B, T, S) or None for all. Returns (B, T, H, d) in q's
    dtype.
    """
    B, T, H, d = q.shape
    G = k.shape[2]
    grouped = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(B, T, G, H // G, d)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask.reshape((-1, 1, 1, *mask.shape[-2:])), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bghts,bsgd->btghd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(B, T, H, d).astype(q.dtype)

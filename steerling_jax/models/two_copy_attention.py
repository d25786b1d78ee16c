"""Attention over a clean and a noisy copy of one sequence, for training with clean context (see `denoise`).

Clean positions see clean blocks up to their own; noisy positions see clean earlier blocks and their own noisy block. So
two score matrices suffice, (2T, T) against the clean copy and (T, block) within noisy blocks: less than half of a
masked (2T, 2T). As in flash attention, the backward pass recomputes them from q, k and the log-sum-exp of each query,
so that the forward pass stores nothing of that size.

Legend: B sequences, T positions of one copy, G key/value heads, h queries a group, d head size, n blocks of b
positions.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend_two_copies(q: jax.Array, k: jax.Array, v: jax.Array, block: int) -> jax.Array:
    """q (B, 2T, H, d), k and v (B, 2T, G, d), the clean copy first, T a multiple of `block`. Returns (B, 2T, H, d)."""
    B, TT, H, d = q.shape
    G = k.shape[2]
    chex.assert_equal_shape((k, v))
    chex.assert_is_divisible(TT, 2 * block)
    grouped = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(B, TT, G, H // G, d).transpose(0, 2, 3, 1, 4)
    out: jax.Array = _attend(grouped, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), block)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, TT, H, d)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, block: int) -> jax.Array:
    """q (B, G, h, 2T, d) scaled, k and v (B, G, 2T, d), to (B, G, h, 2T, d)."""
    return _forward(q, k, v, block)[0]


def _halves(x: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(…, 2T, d) to the clean half (…, T, d) and the noisy half by blocks (…, n, b, d)."""
    clean, noisy = jnp.split(x, 2, axis=-2)
    return clean, noisy.reshape(*noisy.shape[:-2], -1, block, noisy.shape[-1])


def _join(clean: jax.Array, noisy: jax.Array) -> jax.Array:
    """The inverse of `_halves`."""
    return jnp.concatenate([clean, noisy.reshape(*clean.shape)], axis=-2)


def _scores(q: jax.Array, k: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Scores against the clean copy (B, G, h, 2T, T), −inf where not allowed, and of noisy blocks among themselves
    (B, G, h, n, b, b)."""
    clean_k, noisy_k = _halves(k, block)
    T = clean_k.shape[-2]
    number = jnp.arange(T) // block
    allowed = jnp.concatenate([number[:, None] >= number[None, :], number[:, None] > number[None, :]])
    scores = _einsum("bghtd,bgsd->bghts", q, clean_k)
    scores = jnp.where(allowed.reshape(1, 1, 1, 2 * T, T), scores, -jnp.inf)
    return scores, _einsum("bghntd,bgnsd->bghnts", _halves(q, block)[1], noisy_k)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, block: int):
    scores, own = _scores(q, k, block)
    clean_v, noisy_v = _halves(v, block)
    T = clean_v.shape[-2]
    # One softmax over both matrices: a noisy query's peak and total span the clean keys and those of its own block.
    own_peak = own.max(-1).reshape(*own.shape[:3], T)
    peak = scores.max(-1)
    peak = jnp.concatenate([peak[..., :T], jnp.maximum(peak[..., T:], own_peak)], axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    own = jnp.exp(own - peak[..., T:].reshape(*own.shape[:-1])[..., None])
    total = weights.sum(-1)
    total = jnp.concatenate([total[..., :T], total[..., T:] + own.sum(-1).reshape(*own.shape[:3], T)], axis=-1)
    out = _einsum("bghts,bgsd->bghtd", weights.astype(v.dtype), clean_v)
    local = _einsum("bghnts,bgnsd->bghntd", own.astype(v.dtype), noisy_v)
    out = jnp.concatenate([out[..., :T, :], out[..., T:, :] + local.reshape(*out.shape[:3], T, -1)], axis=-2)
    out = (out / total[..., None]).astype(q.dtype)
    return out, (q, k, v, out, peak + jnp.log(total))


def _backward(block: int, saved, g: jax.Array):
    q, k, v, out, log_total = saved
    dtype = q.dtype
    (clean_k, noisy_k), (clean_v, noisy_v), (_, noisy_q), (_, noisy_g) = (_halves(a, block) for a in (k, v, q, g))
    T = clean_k.shape[-2]
    scores, own = _scores(q, k, block)
    by_block = (*own.shape[:-1], 1)
    # Softmax weights p again, from the saved log-sum-exp; then ds = p (dp − Σ_s p_s dp_s), where the sum over keys is
    # g · out, so that it needs no score matrix (Dao et al., FlashAttention, 2022, appendix B).
    weights = jnp.exp(scores - log_total[..., None])
    own = jnp.exp(own - log_total[..., T:].reshape(by_block))
    centre = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    d_scores = weights * (_einsum("bghtd,bgsd->bghts", g, clean_v) - centre[..., None])
    d_own = own * (_einsum("bghntd,bgnsd->bghnts", noisy_g, noisy_v) - centre[..., T:].reshape(by_block))
    weights, own, d_scores, d_own = (a.astype(dtype) for a in (weights, own, d_scores, d_own))
    dq = _einsum("bghts,bgsd->bghtd", d_scores, clean_k)
    dq_own = _einsum("bghnts,bgnsd->bghntd", d_own, noisy_k).reshape(*dq.shape[:3], T, -1)
    dq = jnp.concatenate([dq[..., :T, :], dq[..., T:, :] + dq_own], axis=-2)
    # The product is computed as (d, 2T) · (2T, T) and then transposed: XLA's CPU backend would otherwise transpose the
    # large operand, (2T, T).
    dk = _join(
        _einsum("bghtd,bghts->bgds", q, d_scores).swapaxes(-1, -2), _einsum("bghnts,bghntd->bgnsd", d_own, noisy_q)
    )
    dv = _join(_einsum("bghtd,bghts->bgds", g, weights).swapaxes(-1, -2), _einsum("bghnts,bghntd->bgnsd", own, noisy_g))
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype)


_attend.defvjp(_forward, _backward)

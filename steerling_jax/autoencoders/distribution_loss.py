"""How far a model's next-token distribution moves when its last hidden state is replaced: KL(p ‖ q) and its gradient.

With a vocabulary of V tokens, logits of a row cost 2 V D operations, a hundred times the work of the dictionary. So the
divergence is computed on a part of the vocabulary, the same for p and q:

- each row's own `top` tokens, those to which p gives most, exactly;
- a sample of all other tokens, drawn once for a step and weighted, so that its sums estimate those over the whole rest.

Both distributions are normalised over this part. The estimate is then never negative, and where q equals p it and its
gradient are exactly 0 whatever the sample, so the noise of sampling vanishes as training succeeds. With a sample of
the whole vocabulary it is the exact divergence.

Legend: N rows, D width, V vocabulary, m top tokens of a row, n sampled tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.output_projection import OutputProjection, cap_logits
from steerling_jax.parallel.row_chunks import over_rows

_ROWS = 16  # rows whose m rows of the table are gathered at a time: more would not stay in a CPU's cache


class VocabularySample(NamedTuple):
    """ids (n,) int32, distinct. weights (n,) float32, what each counts in a sum over the vocabulary, at least 1."""

    ids: jax.Array
    weights: jax.Array


def sample_vocabulary(importance: jax.Array, count: int, key: jax.Array) -> VocabularySample:
    """A sample of `count` tokens, drawn by importance (V,) > 0: priority sampling (Duffield, Lund and Thorup, 2007).

    Sums over the sample with its weights have the expectation of the sums over the vocabulary. Tokens are distinct, so
    that a row's own top tokens can be taken out of it.
    """
    V = importance.shape[0]
    if count >= V:
        return VocabularySample(jnp.arange(V, dtype=jnp.int32), jnp.ones(V))
    uniform = jax.random.uniform(key, (V,), minval=jnp.finfo(jnp.float32).tiny)
    priorities, ids = lax.top_k(importance / uniform, count + 1)
    ids = ids[:count].astype(jnp.int32)
    return VocabularySample(ids, jnp.maximum(1.0, priorities[count] / importance[ids]))


def divergence(
    projection: OutputProjection, x: jax.Array, output: jax.Array, top: jax.Array, sample: VocabularySample
) -> tuple[jax.Array, jax.Array]:
    """KL(p ‖ q) in nats (N,), and its gradient by `output` (N, D).

    p is the distribution that the hidden rows x (N, D) give, q that of `output` (N, D). top: (N, m) int32, distinct.
    """
    table, cap = projection
    N, V = len(x), table.shape[0]
    rest = table[sample.ids].astype(jnp.float32)
    p_rest, _ = cap_logits(x @ rest.T, cap)
    q_rest, slope = cap_logits(output @ rest.T, cap)
    # A row's top tokens are counted exactly, so they do not count in its sample. `mode="drop"`: most are not in it.
    places = jnp.full(V, len(sample.ids), jnp.int32).at[sample.ids].set(jnp.arange(len(sample.ids), dtype=jnp.int32))
    weights = jnp.broadcast_to(sample.weights[None], p_rest.shape)
    weights = weights.at[jnp.arange(N)[:, None], places[top]].set(0.0, mode="drop")
    p_total, q_total = (jax.nn.logsumexp(logits, axis=1, b=weights) for logits in (p_rest, q_rest))

    def of_top(part: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, output, top, p_total, q_total = part
        rows = table[top].astype(jnp.float32)
        product = lambda hidden: jnp.einsum("rmd,rd->rm", rows, hidden, precision=lax.Precision.HIGHEST)  # noqa: E731
        (p, _), (q, slope) = cap_logits(product(x), cap), cap_logits(product(output), cap)
        p_total = jnp.logaddexp(p_total, jax.nn.logsumexp(p, axis=1))
        q_total = jnp.logaddexp(q_total, jax.nn.logsumexp(q, axis=1))
        p, q = p - p_total[:, None], q - q_total[:, None]
        nats = jnp.sum(jnp.exp(p) * (p - q), axis=1)
        return nats, jnp.einsum("rm,rmd->rd", (jnp.exp(q) - jnp.exp(p)) * slope, rows), p_total, q_total

    nats, gradient, p_total, q_total = over_rows(of_top, (x, output, top, p_total, q_total), _ROWS)
    p_rest, q_rest = p_rest - p_total[:, None], q_rest - q_total[:, None]
    p_share, q_share = weights * jnp.exp(p_rest), weights * jnp.exp(q_rest)
    nats = nats + jnp.sum(p_share * (p_rest - q_rest), axis=1)
    return nats, gradient + ((q_share - p_share) * slope) @ rest

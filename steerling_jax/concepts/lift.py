"""Which tokens are typical of a concept in a labelled corpus, from counts of tokens, and the probability of such a set.

`lift(w, c) = P(w | c) / P(w)`: how many times more frequent the token w is in chunks with the concept c than in all.

Legend: m chunks, V vocabulary, C concepts.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.corpus.bags import Bags
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features


class Lifted(NamedTuple):
    """The tokens of a concept, (n,) int32, highest lift first, and their lift (n,) float64."""

    tokens: np.ndarray
    lift: np.ndarray


def lifted_tokens(
    bags: Bags,
    positive: np.ndarray,
    vocab_size: int,
    *,
    support: int,
    least: float,
    most: int,
    without: Collection[int] = (),
) -> list[Lifted]:
    """For each concept, at most `most` tokens with a lift of at least `least`; of equal lifts the lower id first.

    bags: the tokens of m chunks. positive (m, C) bool: which concepts each chunk has. support: the number of chunks
    with the concept in which a token must occur, because the lift of rare tokens is noise. without: ids to leave out.
    """
    everywhere = _counts(bags.tokens, vocab_size)
    lifted = []
    for rows in positive.T:
        tokens = bags.tokens[rows]
        inside = _counts(tokens, vocab_size)
        chunks = _counts(_once_a_row(tokens), vocab_size)
        lift = (inside / max(inside.sum(), 1)) / (np.maximum(everywhere, 1) / max(everywhere.sum(), 1))
        lift[(chunks < support) | np.isin(np.arange(vocab_size), list(without))] = 0.0
        best = np.argsort(-lift, kind="stable")[:most]
        best = best[lift[best] >= least]
        lifted.append(Lifted(best.astype(np.int32), lift[best]))
    return lifted


def unrelated(positive: np.ndarray) -> np.ndarray:
    """Which pairs of concepts are unrelated, (C, C) bool, for positive (m, C) bool.

    Two concepts are unrelated if chunks with the one have the other no more often than all chunks do. No concept is
    unrelated to itself.
    """
    p = positive.astype(np.float64)
    together, alone = p.T @ p, p.sum(axis=0)
    # P(a and b) ≤ P(a) P(b), multiplied by m² so that integers are compared.
    return (together * len(p) <= alone[:, None] * alone[None, :]) & ~np.eye(p.shape[1], dtype=bool)


@partial(jax.jit, static_argnames=("config", "compute"))
def set_log_probability(
    params: Params,
    hidden: jax.Array,
    members: jax.Array,
    suppression: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """The log-probability of the set of tokens `members` (V,) bool, (n,) float32, for hidden rows (n, D) of a trace.

    suppression (V,) is subtracted from the logits first, as in decoding.
    """
    rows = logit_features(params, hidden.astype(compute.dtype), config, compute)
    logits = lm_logits(params, rows, compute) - suppression[None, :]
    inside = jax.nn.logsumexp(jnp.where(members[None, :], logits, -jnp.inf), axis=1)
    return inside - jax.nn.logsumexp(logits, axis=1)


def _counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The number of occurrences of each id, (V,) int64; −1 is not counted."""
    return np.bincount(tokens[tokens >= 0], minlength=vocab_size)


def _once_a_row(tokens: np.ndarray) -> np.ndarray:
    """tokens (m, L) sorted in each row, with repetitions within a row replaced by −1."""
    ordered = np.sort(tokens, axis=1)
    again = np.zeros(ordered.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(again, -1, ordered)

"""What the words alone tell: concepts by logistic regression on a chunk's token counts.

The yardstick for the model's concept detection, and the judge of steered texts. A token counts log(1 + how often it is
there). With `hidden` it learns from chunks in which that share of tokens is left out at random, anew in each epoch, as
the model sees noisy text.

Legend: m chunks, L tokens of the longest, V vocabulary, C concepts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.corpus.bags import Bags

_BATCH = 256
_EPOCHS = 8
_LEAST_UPDATES = 600
_RATE = 0.02
_DECAY = 1e-4  # decoupled, times the rate

Weights = dict[str, jax.Array]


def fit_probe(
    bags: Bags,
    positive: np.ndarray,
    vocab_size: int,
    *,
    hidden: float = 0.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    name: str = "probe",
) -> Callable[[Bags], np.ndarray]:
    """Learns from bags and positive (m, C) bool; gives a function from bags to scores (m, C). Deterministic."""
    batches = -(-len(bags) // _BATCH)
    epochs = max(_EPOCHS, -(-_LEAST_UPDATES // batches))
    steps = epochs * batches
    rate = np.clip(positive.mean(axis=0), 1e-4, 1 - 1e-4)
    bias = jnp.asarray(np.log(rate / (1 - rate)), jnp.float32)
    weights = {"token": jnp.zeros((vocab_size, positive.shape[1])), "bias": bias}
    state = _optimizer(steps).init(weights)
    for epoch in range(epochs):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = np.asarray(jax.random.permutation(key, len(bags)))
        for number, start in enumerate(range(0, len(order), _BATCH)):
            rows = np.resize(order[start : start + _BATCH], min(_BATCH, len(order)))
            at = jax.random.fold_in(key, number)
            weights, state = _update(weights, state, bags.tokens[rows], positive[rows], at, hidden, steps=steps)
        progress(name, epoch + 1, epochs)

    def score(held: Bags) -> np.ndarray:
        parts = [_logits(weights, held.tokens[i : i + _BATCH]) for i in range(0, len(held), _BATCH)]
        return np.concatenate([np.asarray(part) for part in parts])

    return score


def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=_DECAY)


@partial(jax.jit, static_argnames="steps", donate_argnums=(0, 1))
def _update(
    weights: Weights,
    state: optax.OptState,
    tokens: jax.Array,
    positive: jax.Array,
    key: jax.Array,
    hidden: jax.Array,
    *,
    steps: int,
) -> tuple[Weights, optax.OptState]:
    tokens = jnp.where(jax.random.uniform(key, tokens.shape) < hidden, -1, tokens)

    def loss(weights: Weights) -> jax.Array:
        nats = optax.sigmoid_binary_cross_entropy(_logits(weights, tokens), positive.astype(jnp.float32))
        return jnp.sum(nats) / len(tokens)

    updates, state = _optimizer(steps).update(jax.grad(loss)(weights), state, weights)
    return optax.apply_updates(weights, updates), state  # type: ignore[return-value]


@jax.jit
def _logits(weights: Weights, tokens: jax.Array) -> jax.Array:
    """(m, C) for tokens (m, L): rows of the table are gathered, so no (m, V) array is built."""
    there = tokens >= 0
    count = jnp.sum((tokens[:, :, None] == tokens[:, None, :]), axis=2)  # of this token in the chunk
    value = jnp.where(there, jnp.log1p(count) / count, 0.0)
    rows = weights["token"][jnp.maximum(tokens, 0)]
    return jnp.einsum("ml,mlc->mc", value, rows) + weights["bias"][None, :]

"""A probe: logistic regression from a chunk's token counts to its concepts, as a baseline for the model's detection.

It also judges steered texts. The feature of a token is log(1 + its count in the chunk). With `hidden`, that share of
the tokens is left out at random, as the model sees noisy text.

The probe is trained by AdamW on mini-batches and not by L-BFGS as in `logistic`: with `hidden` the loss is an
expectation over masks, which are drawn again in every epoch, and the features (m, V) of a whole corpus do not fit into
memory.

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
from steerling_jax.progress import Progress, no_progress

_BATCH = 256
_EPOCHS = 8
_LEAST_UPDATES = 600  # small corpora are repeated until there are so many
_RATE = 0.02
_DECAY = 1e-4  # decoupled weight decay, multiplied by the rate

Weights = dict[str, jax.Array]


def fit_probe(
    bags: Bags,
    positive: np.ndarray,
    vocab_size: int,
    *,
    hidden: float = 0.0,
    seed: int = 0,
    progress: Progress = no_progress,
    name: str = "probe",
) -> Callable[[Bags], np.ndarray]:
    """Trains a probe on the tokens of m chunks and their labels positive (m, C) bool.

    Returns a function from bags to scores (m, C) float32. hidden: the share of tokens left out in training. progress:
    see `progress.Progress`, with the stage `name`. Deterministic in `seed`.
    """
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
    """The logits (m, C) for tokens (m, L), −1 for padding; gathers rows of the table, so no (m, V) array is built."""
    used = tokens >= 0
    count = jnp.sum((tokens[:, :, None] == tokens[:, None, :]), axis=2)  # of this token in the chunk
    # A token that occurs `count` times is added up `count` times, so each time it contributes a share of its feature.
    value = jnp.where(used, jnp.log1p(count) / count, 0.0)
    rows = weights["token"][jnp.maximum(tokens, 0)]
    return jnp.einsum("ml,mlc->mc", value, rows) + weights["bias"][None, :]

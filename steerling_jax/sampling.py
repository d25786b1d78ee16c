"""From raw logits to tokens: what is held down, how sure a position is, which token it takes.

Pure functions on rows of logits. A draw's randomness is `fold_in(key(seed), position)`: it depends on the seed and on
the absolute position alone, never on caching, batching or the step. Source: `generate_full` of the published package.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.generation_config import GenerationConfig


@struct.dataclass
class Adjustment:
    """What happens to raw logits, in the published order.

    suppression (V,) float32, subtracted; penalty () float32, for ids that the canvas holds; banned (V,) bool.
    """

    suppression: jax.Array
    penalty: jax.Array
    banned: jax.Array

    def __call__(self, logits_RV: jax.Array, on_canvas_V: jax.Array) -> jax.Array:
        """logits (R, V) float32 and which ids the canvas now holds (V,) bool, the mask included, to logits (R, V)."""
        logits = logits_RV - self.suppression[None, :]
        penalised = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        logits = jnp.where(on_canvas_V[None, :], penalised, logits)
        return jnp.where(self.banned[None, :], -jnp.inf, logits)


def confidence(logits_RV: jax.Array) -> jax.Array:
    """The largest probability of each row, (R,) float32."""
    top = jnp.max(logits_RV, axis=-1, keepdims=True)
    return 1.0 / jnp.sum(jnp.exp(logits_RV - top), axis=-1)


def position_key(seed: jax.Array | int, position: jax.Array | int) -> jax.Array:
    """The key of the draw at an absolute position."""
    return jax.random.fold_in(jax.random.key(seed), position)


@struct.dataclass
class Greedy:
    """The likeliest token."""

    def __call__(self, key: jax.Array, logits_V: jax.Array) -> jax.Array:
        """logits (V,) to a token id () int32."""
        return jnp.argmax(logits_V).astype(jnp.int32)


@struct.dataclass
class Nucleus:
    """Sampling at a temperature among the likeliest tokens whose mass before them is at most top_p."""

    temperature: jax.Array | float
    top_p: jax.Array | float

    def __call__(self, key: jax.Array, logits_V: jax.Array) -> jax.Array:
        """logits (V,) to a token id () int32."""
        return _draw(key, logits_V / self.temperature, self.top_p)


@struct.dataclass
class EntropyNucleus:
    """Nucleus sampling at a temperature from 0.3 (sure) to 0.7 (torn), by the entropy of the row."""

    top_p: jax.Array | float

    def __call__(self, key: jax.Array, logits_V: jax.Array) -> jax.Array:
        """logits (V,) to a token id () int32."""
        return _draw(key, logits_V / entropy_temperature(logits_V, self.top_p), self.top_p)


Choice = Greedy | Nucleus | EntropyNucleus


def choice_of(config: GenerationConfig) -> Choice:
    """How a position's token is chosen here. Numbers are arrays, so that one program serves them all."""
    top_p = jnp.float32(config.top_p)
    if config.use_entropy_sampling:
        return EntropyNucleus(top_p)
    if config.temperature > 0 and config.top_p > 0:
        return Nucleus(jnp.float32(config.temperature), top_p)
    return Greedy()


def entropy_temperature(logits_V: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """0.3 + 0.4 · min(1, H / ln k), k the size of the nucleus (at least 2), () float32."""
    probs = jax.nn.softmax(logits_V)
    descending = jnp.sort(probs)[::-1]
    effective = jnp.maximum(jnp.sum(jnp.cumsum(descending) <= top_p) + 1, 2)
    entropy = -jnp.sum(probs * jnp.log(probs + 1e-10))
    return 0.3 + 0.4 * jnp.minimum(1.0, entropy / jnp.log(effective.astype(jnp.float32)))


def in_nucleus(logits_V: jax.Array, top_p: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Ids by falling probability (V,), and for each whether it is in the nucleus (V,) bool; the first always is."""
    order = jnp.argsort(-logits_V)
    probs = jax.nn.softmax(logits_V)[order]
    before = jnp.cumsum(probs) - probs
    return order, (before <= top_p).at[0].set(True)


def _draw(key: jax.Array, logits_V: jax.Array, top_p: jax.Array | float) -> jax.Array:
    order, keep = in_nucleus(logits_V, top_p)
    # Noise belongs to ids, not to ranks: where rounding swaps two ranks, the draw stays the same.
    noise = jax.random.gumbel(key, logits_V.shape)[order]
    return order[jnp.argmax(jnp.where(keep, logits_V[order] + noise, -jnp.inf))].astype(jnp.int32)

"""Policies of a decoding step: penalties, the order and number of positions to commit, their tokens, and when a turn
ends.

A policy is a small frozen dataclass that is called on one row's `StepView`. Its fields are arrays, so that rows with
different numbers share a program. Adding one takes a few lines:

    @struct.dataclass
    class LeftToRight:
        def __call__(self, view: StepView) -> jax.Array:
            return -view.position.astype(jnp.float32)

    sj.generate(bundle, "Text", policies=Policies(order=LeftToRight()))

The defaults are the published algorithm (`generate_full` of the `steerling` 0.2.0 package).

Legend: R candidate positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.sampling import NO_LIMIT, confidence, draw, entropy_temperature, position_key


@struct.dataclass
class StepView:
    """One row before a step, as policies see it.

    logits (R, V) float32: for a penalty, raw logits minus the suppression; for the others, after the penalty, with
    banned ids at −inf. open (R,) bool: whether the position is still masked; only open positions can be committed.
    position (R,) int32, absolute. counts (V,) int32: how often each id is on the canvas, the mask included. step ()
    int32: of the sampler block, from 0. seed () uint32. token (R,) int32: the tokens that were drawn, for a stop
    policy; zeros for the others.
    """

    logits: jax.Array
    open: jax.Array
    position: jax.Array
    counts: jax.Array
    step: jax.Array
    seed: jax.Array
    token: jax.Array

    def at(self, rows: jax.Array) -> StepView:
        """The view of the candidate positions `rows` (n,) alone."""
        return dataclasses.replace(
            self, logits=self.logits[rows], open=self.open[rows], position=self.position[rows], token=self.token[rows]
        )


class Policy(Protocol):
    """From a view to: a penalty's logits (R, V); an order's scores (R,), highest first; a schedule's number of
    positions () int32, at least 1; a choice's tokens (R,) int32; a stop's (R,) bool, whether the turn ends there."""

    def __call__(self, view: StepView) -> jax.Array: ...


@struct.dataclass
class RepetitionPenalty:
    """Divides positive logits of ids on the canvas by `penalty` () float32, and multiplies negative ones by it."""

    penalty: jax.Array | float

    def __call__(self, view: StepView) -> jax.Array:
        penalised = jnp.where(view.logits > 0, view.logits / self.penalty, view.logits * self.penalty)
        return jnp.where((view.counts > 0)[None, :], penalised, view.logits)


@struct.dataclass
class MostConfident:
    """Orders positions by the probability of their most likely token, highest first."""

    def __call__(self, view: StepView) -> jax.Array:
        return confidence(view.logits)


@struct.dataclass
class Even:
    """Commits `base` positions a step, and one more in the first `extra` steps of a block."""

    base: jax.Array | int
    extra: jax.Array | int

    def __call__(self, view: StepView) -> jax.Array:
        return jnp.asarray(self.base + (view.step < self.extra), jnp.int32)


@struct.dataclass
class ConfidentEnough:
    """Commits all positions whose confidence is at least `threshold`, or else the most confident one. Not exact: it
    saves passes by choosing tokens that do not see each other."""

    threshold: jax.Array | np.floating | float

    def __call__(self, view: StepView) -> jax.Array:
        sure = view.open & (confidence(view.logits) >= self.threshold)
        return jnp.maximum(jnp.sum(sure), 1).astype(jnp.int32)


@struct.dataclass
class Greedy:
    """Takes the most likely token."""

    def __call__(self, view: StepView) -> jax.Array:
        return jnp.argmax(view.logits, axis=-1).astype(jnp.int32)


@struct.dataclass
class Nucleus:
    """Samples from the nucleus: the most likely tokens whose preceding mass is at most top_p, of the top_k most likely,
    at a temperature; 0 means one from 0.3 to 0.7 by the row's entropy (published). Each draw is keyed by seed and
    position."""

    temperature: jax.Array | float
    top_p: jax.Array | float
    top_k: jax.Array | int = NO_LIMIT

    def __call__(self, view: StepView) -> jax.Array:
        def one(logits_V: jax.Array, position: jax.Array) -> jax.Array:
            scaled = logits_V / self.temperature_of(logits_V)
            return draw(position_key(view.seed, position), scaled, self.top_p, self.top_k)

        return jax.vmap(one)(view.logits, view.position)

    def temperature_of(self, logits_V: jax.Array, largest: jax.Array | None = None) -> jax.Array:
        """The temperature () float32 at which a row of logits (V,) is drawn; largest: see `entropy_temperature`."""
        by_entropy = entropy_temperature(logits_V, self.top_p, largest)
        return jnp.where(jnp.asarray(self.temperature) > 0, self.temperature, by_entropy)


@struct.dataclass
class Sample:
    """Samples from all tokens at a temperature: the draw of `Nucleus` with top_p 1, without sorting the vocabulary."""

    temperature: jax.Array | float

    def __call__(self, view: StepView) -> jax.Array:
        def one(logits_V: jax.Array, position: jax.Array) -> jax.Array:
            noise = jax.random.gumbel(position_key(view.seed, position), logits_V.shape)
            return jnp.argmax(logits_V / self.temperature + noise).astype(jnp.int32)

        return jax.vmap(one)(view.logits, view.position)


@struct.dataclass
class EndOfTurn:
    """The turn ends with the id `token` () int32; −1 for never."""

    token: jax.Array | int

    def __call__(self, view: StepView) -> jax.Array:
        return view.token == self.token


@struct.dataclass
class EndOfText:
    """The text ends with any of the ids `tokens` (n,) int32; −1 for an unused place."""

    tokens: jax.Array

    def __call__(self, view: StepView) -> jax.Array:
        return jnp.isin(view.token, self.tokens)


@dataclass(frozen=True)
class Policies:
    """A request's policies; None means what its `GenerationConfig` says. Rows whose policies are of the same types
    are decoded together."""

    penalty: Policy | None = None
    order: Policy | None = None
    schedule: Policy | None = None
    choice: Policy | None = None
    stop: Policy | None = None

    def completed(self, config: GenerationConfig, block: int, blocks: int, eot: int | None) -> Policies:
        """These policies with the published ones of `config` in the empty places; block: tokens of a sampler block."""
        steps = (config.steps or blocks * block) // blocks
        published = Policies(
            RepetitionPenalty(jnp.float32(config.repetition_penalty)),
            MostConfident(),
            Even(jnp.int32(block // steps), jnp.int32(block % steps)),
            choice_of(config),
            EndOfTurn(jnp.int32(-1 if eot is None else eot)),
        )
        return self._over(published)

    def completed_for_tokens(self, config: GenerationConfig, ends: Sequence[int]) -> Policies:
        """These policies with those of an autoregressive model in the empty places; ends: ids that end the text."""
        # A power of two of places, so that requests with more or fewer ids share a program.
        places = max(4, 1 << (len(ends) - 1).bit_length()) if ends else 4
        tokens = np.full(places, -1, np.int32)
        tokens[: len(ends)] = ends
        penalty, choice = RepetitionPenalty(jnp.float32(config.repetition_penalty)), choice_of(config)
        if isinstance(choice, Nucleus) and not config.use_entropy_sampling and config.top_p == 1 and not config.top_k:
            choice = Sample(choice.temperature)
        return self._over(Policies(penalty=penalty, choice=choice, stop=EndOfText(jnp.asarray(tokens))))

    def _over(self, defaults: Policies) -> Policies:
        """These policies, and `defaults` in the empty places."""
        mine = {name: policy for name, policy in vars(self).items() if policy is not None}
        return jax.tree.map(jnp.asarray, dataclasses.replace(defaults, **mine))


def choice_of(config: GenerationConfig) -> Policy:
    """How tokens are chosen under these settings: entropy sampling, else nucleus, else the likeliest token."""
    top_p, top_k = jnp.float32(config.top_p), jnp.int32(config.top_k or NO_LIMIT)
    if config.use_entropy_sampling:
        return Nucleus(jnp.float32(0), top_p, top_k)
    if config.temperature > 0 and config.top_p > 0:
        return Nucleus(jnp.float32(config.temperature), top_p, top_k)
    return Greedy()


def _parts(policies: Policies) -> tuple[list[tuple[Any, Any]], tuple[type, ...]]:
    """What JAX sees of them: the policies, and their classes. Without these it would take trees of two dataclasses with
    like fields for equal (0.10, 0.12), and one policy's compiled program for the other's."""
    parts = vars(policies)
    named = [(jax.tree_util.GetAttrKey(name), policy) for name, policy in parts.items()]
    return named, tuple(map(type, parts.values()))


jax.tree_util.register_pytree_with_keys(Policies, _parts, lambda _, policies: Policies(*policies))

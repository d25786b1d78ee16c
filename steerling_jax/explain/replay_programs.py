"""Compiled programs that replay decoding steps: from hidden rows of snapshots to candidates, order and drawn tokens.

Legend: S steps of a call, N branches (2 under guidance), W positions of a step (the sampler block; 1 in an
autoregressive model), D width, V vocabulary, K candidates, T positions of a text.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.decoding.policies import Greedy, Nucleus, Policies, Policy, Sample, StepView
from steerling_jax.decoding.step import rank_positions
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features

_NUCLEUS = 256  # tokens


class StepInputs(NamedTuple):
    """What the steps of a call saw.

    hidden: hidden rows of the positions, (S, W, D) for each of N branches, or (S, D) of an autoregressive model.
    open (S, W) bool, position (S, W), counts (S, V), step (S,) int32: as in `StepView`.
    """

    hidden: Any
    open: Any
    position: Any
    counts: Any
    step: Any


class Replayed(NamedTuple):
    """The results of S steps.

    open (S, W) bool. token_ids, probabilities, raw_probabilities (S, W, K): candidates, most likely first. entropy, in
    bits, confidence, temperature (S, W) float32; temperature is NaN for an unknown choice. ranking (S, W): indices of
    positions in the order of commitment. quota (S,): the number to commit. drawn (S, W): tokens in the order of
    `ranking`, the first `quota` of them drawn.
    """

    open: Any
    token_ids: Any
    probabilities: Any
    raw_probabilities: Any
    entropy: Any
    confidence: Any
    temperature: Any
    ranking: Any
    quota: Any
    drawn: Any


@partial(jax.jit, static_argnames=("top", "config", "compute"))
def replay_steps(
    params: Params,
    inputs: StepInputs,
    policies: Policies,
    suppression: jax.Array,
    seed: jax.Array,
    guidance: jax.Array,
    prompt: jax.Array,
    clamps: RowClamps | None,
    *,
    top: int,
    config: ModelConfig,
    compute: Compute,
) -> Replayed:
    """Steps of a diffusion model, from hidden rows (S, W, D) of N branches. suppression (V,); seed, guidance, prompt ()
    as in `decoding.step.StepSettings`."""

    def one(step: StepInputs) -> Replayed:
        N, W = len(step.hidden), len(step.position)
        offsets = jnp.tile(step.position - prompt, N)
        features = logit_features(params, jnp.concatenate(step.hidden), config, compute, clamps, offsets)
        raw = lm_logits(params, features, compute).reshape(N, W, -1)
        raw = raw[0] if N == 1 else raw[1] + (guidance + 1.0) * (raw[0] - raw[1])
        view = _view(step, raw - suppression[None, :], seed)
        view, ranking, quota = rank_positions(policies, view, config)
        return _replayed(policies, view, raw, ranking, quota, top)

    # One step at a time: the logits of all of them, (S, W, V), would take gigabytes with a large vocabulary.
    return lax.map(one, inputs)


@partial(jax.jit, static_argnames=("top", "backbone"))
def replay_tokens(
    params: Params, inputs: StepInputs, policies: Policies, seed: jax.Array, *, top: int, backbone: Backbone
) -> Replayed:
    """Steps of an autoregressive model, from the hidden rows (S, D) of the positions before the tokens."""

    def one(step: StepInputs) -> Replayed:
        assert policies.penalty is not None
        raw = backbone.logits(params, step.hidden[None])
        view = _view(step, raw, seed)
        view = dataclasses.replace(view, logits=policies.penalty(view))
        return _replayed(policies, view, raw, jnp.zeros(1, jnp.int32), jnp.int32(1), top)

    return lax.map(one, inputs)


def _view(step: StepInputs, logits: jax.Array, seed: jax.Array) -> StepView:
    nothing = jnp.zeros(len(step.position), jnp.int32)
    return StepView(logits, step.open, step.position, step.counts, step.step, seed, nothing)


def _replayed(
    policies: Policies, view: StepView, raw: jax.Array, ranking: jax.Array, quota: jax.Array, top: int
) -> Replayed:
    """One step's result from its view after penalty and bans, and its raw logits (W, V)."""
    choice = policies.choice
    assert choice is not None

    def draw(n: jax.Array, tokens: jax.Array) -> jax.Array:
        return tokens.at[n].set(choice(view.at(ranking[n][None]))[0])

    probabilities = jax.nn.softmax(view.logits, axis=-1)
    best, ids = lax.top_k(probabilities, top)
    raw_best = jnp.take_along_axis(jax.nn.softmax(raw, axis=-1), ids, axis=-1)
    # A banned token has the probability 0, whose logarithm is not finite.
    bits = jnp.where(probabilities > 0, probabilities * jnp.log2(jnp.maximum(probabilities, 1e-38)), 0.0)
    return Replayed(
        open=view.open,
        token_ids=ids,
        probabilities=best,
        raw_probabilities=raw_best,
        entropy=-jnp.sum(bits, axis=-1),
        # Not `best[:, 0]`: XLA compiles a slice of top_k's result on a CPU to a sort of the whole vocabulary.
        confidence=jnp.max(probabilities, axis=-1),
        temperature=_temperatures(choice, view),
        ranking=ranking,
        quota=quota,
        drawn=lax.fori_loop(0, quota, draw, jnp.zeros(len(ranking), jnp.int32)),
    )


def _temperatures(choice: Policy, view: StepView) -> jax.Array:
    """The temperatures (W,) at which rows of a view are drawn: 0 where the most likely token is taken, NaN for a choice
    that is not one of this package's. Rows that are not open have some temperature, which nobody reads."""
    if isinstance(choice, Nucleus):
        return lax.map(lambda row: _nucleus_temperature(choice, *row), (view.logits, view.open))
    constant = choice.temperature if isinstance(choice, Sample) else 0.0 if isinstance(choice, Greedy) else jnp.nan
    return jnp.full(len(view.logits), constant, jnp.float32)


def _nucleus_temperature(choice: Nucleus, logits: jax.Array, open: jax.Array) -> jax.Array:
    """The temperature () of a row of logits (V,).

    Sorting the vocabulary would be most of a replay's time on a CPU: a draw sorts once for each committed token, but
    here every open position has a temperature. Nearly always the nucleus is within the first few hundred tokens.
    """
    largest, _ = lax.top_k(jax.nn.softmax(logits), min(_NUCLEUS, len(logits)))
    # `entropy_temperature` compares the same sums with top_p; from too few of them it would get too small a nucleus.
    enough = jnp.cumsum(largest)[-1] > choice.top_p
    # Rows are mapped, not vectorised: a vectorised `cond` would compute both branches.
    return lax.cond(
        enough | ~open,
        lambda: choice.temperature_of(logits, largest),
        lambda: choice.temperature_of(logits),
    )

"""One denoising step, from logits to tokens on the canvas: pure, on the logits of a pass or on a guess's old ones.

Legend: B rows, K drafts, W the diffusion block, R candidate positions, L layers, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from steerling_jax.decoding.policies import Policies, StepView
from steerling_jax.models.steerling.config import ModelConfig


@struct.dataclass
class StepSettings:
    """What stays the same while a row writes one sampler block. Of one row here; a batch leads with B.

    policies: complete. suppression (V,) float32, subtracted from raw logits. seed () uint32. total: length of the
    canvas. prompt: of the prompt. begin: the sampler block's first position. first: A's first position, all before it
    being cached. patience: number of commits at which the host must look (a change of the injection), at most W.
    guidance () float32. at_masks, at_prompt (L, D) float32: what is injected. active: whether the row is in use.
    """

    policies: Policies
    suppression: jax.Array
    seed: jax.Array
    total: jax.Array
    prompt: jax.Array
    begin: jax.Array
    first: jax.Array
    patience: jax.Array
    guidance: jax.Array
    at_masks: jax.Array
    at_prompt: jax.Array
    active: jax.Array


@struct.dataclass
class Canvas:
    """What changes, of one row. window (2W,) ids of A and B; counts (V,) how often each id is on the whole canvas;
    committed, step: of the sampler block; ended: whether a turn has ended; stale: whether A must be computed again."""

    window: jax.Array
    counts: jax.Array
    committed: jax.Array
    step: jax.Array
    ended: jax.Array
    stale: jax.Array

    def finished(self, rules: StepSettings) -> jax.Array:
        """Whether no step can be taken before the host has looked, () bool."""
        return self.ended | (self.committed >= rules.patience)


@struct.dataclass
class StepCommits:
    """A step's commits, most confident first. used (R,) bool: how many of the rest are real. candidate (R,): which
    row of the logits; offset within the sampler block, token, raw logit, each (R,); step ()."""

    used: jax.Array
    candidate: jax.Array
    offset: jax.Array
    token: jax.Array
    logit: jax.Array
    step: jax.Array


def open_positions(rules: StepSettings, canvas: Canvas, config: ModelConfig) -> jax.Array:
    """Which positions of one row's sampler block are still masked, (W,) bool."""
    block = lax.dynamic_slice(canvas.window, (rules.begin - rules.first,), (config.diff_block_size,))
    return block == config.mask_token_id


def take_step(
    rules: StepSettings, canvas: Canvas, raw: jax.Array, candidates: jax.Array, config: ModelConfig
) -> tuple[Canvas, StepCommits]:
    """The canvases (B, K) after one step each, and its commits. raw (B, K, R, V) are logits of the positions whose
    offsets are `candidates` (B, K, R). A canvas that is finished stays as it is."""

    def drafts(function):  # over rows and drafts; rules belong to rows
        return jax.vmap(jax.vmap(function, (None, 0, 0, 0)))

    views, ranking, quota = drafts(partial(_rank, config=config))(rules, canvas, raw, candidates)

    def draw(n: jax.Array, tokens: jax.Array) -> jax.Array:
        def one(rules: StepSettings, view: StepView, ranking: jax.Array, tokens: jax.Array) -> jax.Array:
            assert rules.policies.choice is not None
            return tokens.at[n].set(rules.policies.choice(view.at(ranking[n][None]))[0])

        return drafts(one)(rules, views, ranking, tokens)

    # One draw after the other, as many as the busiest row needs: sampling sorts the vocabulary.
    tokens = lax.fori_loop(0, jnp.max(quota), draw, jnp.zeros_like(ranking))
    settle = jax.vmap(jax.vmap(partial(_settle, config=config), (None, 0, 0, 0, 0, 0, 0, 0)))
    return settle(rules, canvas, views, ranking, quota, tokens, raw, candidates)


def _rank(
    rules: StepSettings, canvas: Canvas, raw: jax.Array, candidates: jax.Array, config: ModelConfig
) -> tuple[StepView, jax.Array, jax.Array]:
    """One row's view, its candidates in the order of commitment (R,), and how many of them to commit."""
    policies, R = rules.policies, candidates.shape[0]
    assert policies.penalty is not None
    assert policies.order is not None
    assert policies.schedule is not None
    masked = open_positions(rules, canvas, config)[candidates] & ~canvas.finished(rules)
    view = StepView(
        raw - rules.suppression[None, :],
        masked,
        rules.begin + candidates,
        canvas.counts,
        canvas.step,
        rules.seed,
        jnp.zeros(R, jnp.int32),
    )
    banned = jnp.isin(jnp.arange(raw.shape[-1]), _never_written(config))
    view = dataclasses.replace(view, logits=jnp.where(banned[None, :], -jnp.inf, policies.penalty(view)))
    lowest = jnp.finfo(jnp.float32).min  # NaN is no confidence at all, but the position is still open
    score = jnp.where(masked, jnp.nan_to_num(policies.order(view), nan=lowest, neginf=lowest), -jnp.inf)
    # Ties, as where probabilities round to 1, have no published order; later positions first agrees with what was seen.
    ranking = R - 1 - jnp.argsort(-score[::-1])
    return view, ranking, jnp.minimum(jnp.maximum(policies.schedule(view), 1), jnp.sum(masked))


def _never_written(config: ModelConfig) -> jax.Array:
    return jnp.array([config.eos_token_id, config.mask_token_id, config.pad_token_id])


def _settle(
    rules: StepSettings,
    canvas: Canvas,
    view: StepView,
    ranking: jax.Array,
    quota: jax.Array,
    tokens: jax.Array,
    raw: jax.Array,
    candidates: jax.Array,
    config: ModelConfig,
) -> tuple[Canvas, StepCommits]:
    """One row's canvas with its tokens (R,), in the order of `ranking`, up to the first that ends the turn."""
    W = config.diff_block_size
    assert rules.policies.stop is not None
    within = jnp.arange(ranking.shape[0]) < quota
    stops = within & rules.policies.stop(dataclasses.replace(view.at(ranking), token=tokens))
    used = within & (jnp.cumsum(stops) - stops == 0)
    offset = candidates[ranking]
    place = rules.begin - rules.first + offset
    count = jnp.sum(used)
    after = Canvas(
        window=canvas.window.at[jnp.where(used, place, 2 * W)].set(tokens, mode="drop"),
        counts=canvas.counts.at[config.mask_token_id].add(-count).at[tokens].add(used.astype(jnp.int32)),
        committed=canvas.committed + count,
        step=canvas.step + ~canvas.finished(rules),
        ended=canvas.ended | jnp.any(stops & used),
        stale=canvas.stale | jnp.any(used & (place < W)),
    )
    return after, StepCommits(used, ranking, offset, tokens, raw[ranking, tokens], canvas.step)

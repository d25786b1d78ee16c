"""One denoising step: from the logits of a pass to tokens on the canvas. Pure functions, vectorised over rows and
drafts.

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
    """What stays fixed while one row writes a sampler block; in a batch every leaf leads with B.

    policies: all five are set. suppression: (V,) float32, subtracted from raw logits. seed: () uint32. total, prompt:
    lengths of the canvas and of the prompt. begin: the sampler block's first position. first: A's first position; all
    positions before it are cached. commit_limit: commits in this block after which the loop returns to the host, since
    the injection changes there; at most W. guidance: () float32. at_masks, at_prompt: (L, D) float32, injections at
    masked positions and at the prompt's. active: whether the row is in use.
    """

    policies: Policies
    suppression: jax.Array
    seed: jax.Array
    total: jax.Array
    prompt: jax.Array
    begin: jax.Array
    first: jax.Array
    commit_limit: jax.Array
    guidance: jax.Array
    at_masks: jax.Array
    at_prompt: jax.Array
    active: jax.Array


@struct.dataclass
class Canvas:
    """What changes from step to step, for one row. window: (2W,) ids of A and B. counts: (V,), how often each id occurs
    on the whole canvas. committed, step: commits and steps in the sampler block. ended: whether the turn has ended.
    stale: whether A has changed since its keys and values were computed."""

    window: jax.Array
    counts: jax.Array
    committed: jax.Array
    step: jax.Array
    ended: jax.Array
    stale: jax.Array

    def finished(self, settings: StepSettings) -> jax.Array:
        """Whether the row needs the host before its next step, () bool."""
        return self.ended | (self.committed >= settings.commit_limit)


@struct.dataclass
class StepCommits:
    """The commits of one step, most confident first, padded to R. used: (R,) bool, which entries are commits.
    candidate: (R,), the row of the logits. offset within the sampler block, token, raw logit: (R,) each. step: ()."""

    used: jax.Array
    candidate: jax.Array
    offset: jax.Array
    token: jax.Array
    logit: jax.Array
    step: jax.Array


def open_positions(settings: StepSettings, canvas: Canvas, config: ModelConfig) -> jax.Array:
    """Masked positions of one row's sampler block, (W,) bool."""
    block = lax.dynamic_slice(canvas.window, (settings.begin - settings.first,), (config.diff_block_size,))
    return block == config.mask_token_id


def take_step(
    settings: StepSettings, canvas: Canvas, raw: jax.Array, candidates: jax.Array, config: ModelConfig
) -> tuple[Canvas, StepCommits]:
    """One step on each canvas (B, K): the canvases after it, and its commits.

    raw: (B, K, R, V), logits of the positions with the offsets `candidates` (B, K, R) in the sampler block. A finished
    canvas stays as it is.
    """

    def drafts(function):  # over rows and drafts; settings belong to rows
        return jax.vmap(jax.vmap(function, (None, 0, 0, 0)))

    views, ranking, quota = drafts(partial(_rank, config=config))(settings, canvas, raw, candidates)

    def draw(n: jax.Array, tokens: jax.Array) -> jax.Array:
        def one(settings: StepSettings, view: StepView, ranking: jax.Array, tokens: jax.Array) -> jax.Array:
            assert settings.policies.choice is not None
            return tokens.at[n].set(settings.policies.choice(view.at(ranking[n][None]))[0])

        return drafts(one)(settings, views, ranking, tokens)

    # Sampling sorts the vocabulary, so it runs once for each token that is committed, as often as the busiest row
    # needs, and not for every candidate.
    tokens = lax.fori_loop(0, jnp.max(quota), draw, jnp.zeros_like(ranking))
    settle = jax.vmap(jax.vmap(partial(_settle, config=config), (None, 0, 0, 0, 0, 0, 0, 0)))
    return settle(settings, canvas, views, ranking, quota, tokens, raw, candidates)


def _rank(
    settings: StepSettings, canvas: Canvas, raw: jax.Array, candidates: jax.Array, config: ModelConfig
) -> tuple[StepView, jax.Array, jax.Array]:
    """One row's view, its candidates (R,) in the order of commitment, and the number to commit."""
    view = StepView(
        raw - settings.suppression[None, :],
        open_positions(settings, canvas, config)[candidates] & ~canvas.finished(settings),
        settings.begin + candidates,
        canvas.counts,
        canvas.step,
        settings.seed,
        jnp.zeros(candidates.shape[0], jnp.int32),
    )
    return rank_positions(settings.policies, view, config)


def rank_positions(policies: Policies, view: StepView, config: ModelConfig) -> tuple[StepView, jax.Array, jax.Array]:
    """The ranking of a step, from a view with raw logits minus the suppression.

    Returns the view with the logits that order, schedule and choice read, the candidates (R,) int32 in the order of
    commitment, open ones first, and the number to commit () int32. Decoding and its replay (`explain.considered`) both
    call it.
    """
    assert policies.penalty is not None
    assert policies.order is not None
    assert policies.schedule is not None
    banned = jnp.isin(jnp.arange(view.logits.shape[-1]), _banned_ids(config))
    view = dataclasses.replace(view, logits=jnp.where(banned[None, :], -jnp.inf, policies.penalty(view)))
    lowest = jnp.finfo(jnp.float32).min  # a NaN score comes last, yet before positions that are not open (−inf)
    score = jnp.where(view.open, jnp.nan_to_num(policies.order(view), nan=lowest, neginf=lowest), -jnp.inf)
    # Ties, as between probabilities that round to 1, have no specified order in the published package (torch.topk);
    # taking later positions first agrees with its recorded outputs.
    ranking = len(score) - 1 - jnp.argsort(-score[::-1])
    return view, ranking, jnp.minimum(jnp.maximum(policies.schedule(view), 1), jnp.sum(view.open))


def _banned_ids(config: ModelConfig) -> jax.Array:
    return jnp.array([config.eos_token_id, config.mask_token_id, config.pad_token_id])


def _settle(
    settings: StepSettings,
    canvas: Canvas,
    view: StepView,
    ranking: jax.Array,
    quota: jax.Array,
    tokens: jax.Array,
    raw: jax.Array,
    candidates: jax.Array,
    config: ModelConfig,
) -> tuple[Canvas, StepCommits]:
    """One row's canvas after its commits: tokens (R,) in the order of `ranking`, up to the first that ends the turn."""
    W = config.diff_block_size
    assert settings.policies.stop is not None
    within = jnp.arange(ranking.shape[0]) < quota
    stops = within & settings.policies.stop(dataclasses.replace(view.at(ranking), token=tokens))
    used = within & (jnp.cumsum(stops) - stops == 0)
    offset = candidates[ranking]
    place = settings.begin - settings.first + offset
    count = jnp.sum(used)
    after = Canvas(
        window=canvas.window.at[jnp.where(used, place, 2 * W)].set(tokens, mode="drop"),
        counts=canvas.counts.at[config.mask_token_id].add(-count).at[tokens].add(used.astype(jnp.int32)),
        committed=canvas.committed + count,
        step=canvas.step + ~canvas.finished(settings),
        ended=canvas.ended | jnp.any(stops & used),
        stale=canvas.stale | jnp.any(used & (place < W)),
    )
    return after, StepCommits(used, ranking, offset, tokens, raw[ranking, tokens], canvas.step)

"""Logits and log-probabilities of committed tokens after the removal of a concept, in the head or in the whole pass.

Legend: p pairs of a committed token and a concept, P pairs of a call, B canvases of a call, D width, S canvas positions
with padding, L layers.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import concept_embeddings
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.window import edits_of_canvases
from steerling_jax.explain.contributions import Contributions
from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit, from_layer, project_out
from steerling_jax.models.steerling.backbone import embed_tokens, lm_logits, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features
from steerling_jax.models.steerling.heads import EpsilonRule

_RULES: tuple[EpsilonRule, ...] = ("frozen", "published")
_PAIRS = 64  # pairs per call of the heads
_PASSES = 16  # canvases per call of the whole model


def removed_in_head(bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray, ids: np.ndarray, head: Head) -> np.ndarray:
    """The scores (p, 3, 3) of `_at_head` for hidden (p, D), tokens and ids (p,), in calls of a fixed size."""
    parts = []
    for first in range(0, len(ids), _PAIRS):
        rows = np.minimum(np.arange(first, first + _PAIRS), len(ids) - 1)  # the last pair fills up the last call
        parts.append(
            _at_head(
                bundle.params,
                hidden[rows],
                tokens[rows],
                ids[rows],
                head=head,
                config=bundle.config,
                compute=bundle.compute,
            )
        )
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


@partial(jax.jit, static_argnames=("head", "config", "compute"))
def _at_head(
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    ids: jax.Array,
    *,
    head: Head,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """The `_scores` of the tokens, (P, 3, 3): unchanged, removed "frozen" and removed "published"."""

    def features(row: jax.Array, concept: jax.Array) -> jax.Array:
        """The inputs of lm_head (3, D) for a hidden row (D,) and a concept's id ()."""
        clamp = (concept[None], jnp.zeros(1))
        always = jnp.int32(0), jnp.int32(1)  # the clamp's span of offsets, with the row at offset 0

        def removed(rule: EpsilonRule) -> jax.Array:
            known, discovered = (clamp, None) if head == "known" else (None, clamp)
            return logit_features(
                params, row[None], config, compute, RowClamps(known, discovered, *always, rule), jnp.zeros(1, jnp.int32)
            )

        plain = logit_features(params, row[None], config, compute)
        return jnp.concatenate([plain, *(removed(rule) for rule in _RULES)])

    rows = jax.vmap(features)(hidden.astype(compute.dtype), ids)
    return _scores(params, rows.reshape(-1, rows.shape[-1]), jnp.repeat(tokens, 3), compute).reshape(-1, 3, 3)


def _scores(params: Params, features: jax.Array, tokens: jax.Array, compute: Compute) -> jax.Array:
    """Logits, log-probabilities and logits above the mean of all tokens' logits, (N, 3), of tokens (N,) for features
    (N, D)."""
    logits = lm_logits(params, features, compute)
    picked = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    probability = -optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return jnp.stack([picked, probability, picked - jnp.mean(logits, axis=-1)], axis=1)


def removed_in_pass(
    bundle: Bundle, trace: Trace, shares: Contributions, orders: np.ndarray, ids: np.ndarray, head: Head, layer: int
) -> np.ndarray:
    """The `_scores` (p, 3) of the tokens with each pair's direction removed from the whole pass."""
    config, mask_id = bundle.config, trace.mask_id
    positions, tokens, steps = shares.positions[orders], shares.token_ids[orders], shares.steps[orders]
    distinct_steps = np.unique(steps).tolist()
    pad = padded_length(len(trace.tokens), config) - len(trace.tokens)  # hidden from attention
    canvases = {step: np.pad(trace.snapshot(step), (0, pad), constant_values=mask_id) for step in distinct_steps}
    injected = {step: trace.injected(step, config.n_layers, config.n_embd) for step in distinct_steps}
    parts = []
    for first in range(0, len(ids), _PASSES):
        rows = np.minimum(np.arange(first, first + _PASSES), len(ids) - 1)
        at = steps[rows].tolist()
        tables = [np.stack(side) for side in zip(*(injected[step] for step in at))]
        parts.append(
            _in_pass(
                bundle.params,
                _Passes(
                    canvases=np.stack([canvases[step] for step in at]),
                    positions=positions[rows],
                    tokens=tokens[rows],
                    ids=ids[rows],
                    prompt=np.int32(trace.prompt_length),
                    total=np.int32(len(trace.tokens)),
                    at_masks=tables[0],
                    at_prompt=tables[1],
                    layer=np.int32(layer),
                    edits=trace.edits,
                ),
                head=head,
                mask_id=mask_id,
                config=config,
                compute=bundle.compute,
            )
        )
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


class _Passes(NamedTuple):
    """Passes in which one concept's direction is removed, and the tokens to score.

    canvases: (B, S), `total` () positions each, of which `prompt` () are the prompt's, then padding. positions, tokens,
    ids: (B,), the scored positions, their tokens, and the removed concepts. at_masks, at_prompt: (B, L, D), how the
    text was steered. layer: (), the first layer, from 1, after which the direction is removed. edits: those of the
    text's generation.
    """

    canvases: jax.typing.ArrayLike
    positions: jax.typing.ArrayLike
    tokens: jax.typing.ArrayLike
    ids: jax.typing.ArrayLike
    prompt: jax.typing.ArrayLike
    total: jax.typing.ArrayLike
    at_masks: jax.typing.ArrayLike
    at_prompt: jax.typing.ArrayLike
    layer: jax.typing.ArrayLike
    edits: tuple[LayerEdit, ...]


@partial(jax.jit, static_argnames=("head", "mask_id", "config", "compute"))
def _in_pass(
    params: Params, passes: _Passes, *, head: Head, mask_id: int, config: ModelConfig, compute: Compute
) -> jax.Array:
    """The `_scores` (B, 3) of the tokens of the passes."""
    canvases, positions, tokens, ids = (jnp.asarray(values) for values in passes[:4])
    direction = concept_embeddings(params, ids, head=head, config=config, compute=compute)
    direction = direction / jnp.maximum(jnp.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    # The projection comes after the injection of the same layer: what steering adds along the direction goes, too.
    steering = edits_of_canvases(canvases, passes.prompt, mask_id, passes.at_masks, passes.at_prompt, passes.edits)
    edits = (*steering, project_out(direction, from_layer(jnp.asarray(passes.layer), config.n_layers)))
    x, at = embed_tokens(params, canvases, compute), jnp.arange(canvases.shape[1])
    mask = block_causal_mask(at, at, config.diff_block_size) & (at < passes.total)[None, :]
    hidden = run_backbone(params, x, config=config, compute=compute, attention=mask, edits=edits).hidden
    rows = hidden[jnp.arange(len(positions)), positions]
    return _scores(params, logit_features(params, rows, config, compute), tokens, compute)

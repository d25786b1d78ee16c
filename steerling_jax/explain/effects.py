"""Effects of concepts on committed tokens: the contribution to the logit beside what removing the concept changes.

There are three removals, each applied to the pass that committed the token:
- "frozen": the concept's activation is set to 0 in its head, and everything else in `composed` stays. The logit falls
  by exactly the contribution; the log-probability also depends on how the logits of other tokens change.
- "published": the same clamp with the published package's rule for epsilon. For a known concept the epsilon correction
  is switched off. For a discovered one epsilon compensates what was removed, so nothing changes in a model with the
  correction.
- "pass": the concept's direction is projected out of the hidden states of all positions after every layer from
  `first_layer` on. This also removes what the concept does through other positions.

Legend: n committed tokens, J concepts, p pairs of the two, D width, S canvas positions with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Head
from steerling_jax.concepts.heads import check_concepts, concept_embeddings
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.window import steering_of_canvases
from steerling_jax.errors import UserError, require
from steerling_jax.explain.contributions import Contributions, hidden_rows
from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import from_layer, project_out
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, lm_logits, logit_features
from steerling_jax.models.steerling.heads import EpsilonRule

REMOVALS = ("frozen", "published", "pass")
_RULES: tuple[EpsilonRule, ...] = ("frozen", "published")
_PAIRS = 64  # pairs per call of the heads
_PASSES = 16  # canvases per call of the whole model


@dataclass(frozen=True)
class ConceptEffects:
    """Effects of p pairs of a committed token and a concept, ordered by token, as NumPy arrays.

    orders (p,) int32: the commit's index in the trace; positions, concept_ids (p,) int32.
    direct (p,) float32: the concept's contribution to the token's logit, 0 where the concept is not listed.
    logit, log_probability: for each removal, by how much the value fell when the concept was removed, (p,) float32.
    """

    head: Head
    orders: np.ndarray
    positions: np.ndarray
    concept_ids: np.ndarray
    direct: np.ndarray
    logit: dict[str, np.ndarray]
    log_probability: dict[str, np.ndarray]

    def summed(self, spans: Sequence[tuple[int, int]]) -> list[ConceptEffects]:
        """For each half-open span of positions, the sums over its tokens, with one pair per concept."""
        return [self._sum((self.positions >= start) & (self.positions < end)) for start, end in spans]

    def _sum(self, inside: np.ndarray) -> ConceptEffects:
        """The sums by concept over the pairs `inside` (p,) bool, at the span's first position and order."""
        ids, index = np.unique(self.concept_ids[inside], return_inverse=True)

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values[inside], len(ids)).astype(np.float32)

        first = np.full(len(ids), self.positions[inside].min(initial=2**31 - 1), np.int32)
        return ConceptEffects(
            self.head,
            np.full(len(ids), self.orders[inside].min(initial=2**31 - 1), np.int32),
            first,
            ids.astype(np.int32),
            total(self.direct),
            {name: total(v) for name, v in self.logit.items()},
            {name: total(v) for name, v in self.log_probability.items()},
        )


def concept_effects(
    bundle: Bundle,
    trace: Trace,
    shares: Contributions,
    concepts: Sequence[int],
    *,
    head: Head = "known",
    start: int = 0,
    end: int | None = None,
    first_layer: int | None = None,
) -> ConceptEffects:
    """Effects of the concepts with the ids `concepts` on every token committed at positions [start, end).

    shares: `concept_contributions` of the same trace. first_layer: the first layer, counted from 1, of the removal
    "pass"; by default half of the layers, as in steering. Injection of steered text stays. Raises `UserError` for ids
    that the head does not have, an empty selection, and text generated with clamped concepts or guidance.
    """
    config = bundle.config
    check_concepts(config, head, concepts)
    layer = config.n_layers // 2 if first_layer is None else first_layer
    if not 0 <= layer <= config.n_layers:
        raise UserError(f"first_layer is {layer}, but the layers are 1 to {config.n_layers}.")
    inside = (shares.positions >= start) & (shares.positions < (len(trace.tokens) if end is None else end))
    tokens = np.flatnonzero(inside)
    require(
        trace.clamps is None,
        "Effects cannot be measured in text generated with clamped concepts; give a trace without clamps.",
    )
    require(
        trace.guidance == 0,
        "Effects cannot be measured in guided text, whose logits combine two passes; give a trace without guidance.",
    )
    if not len(tokens) or not len(concepts):
        raise UserError(
            f"No token is committed in [{start}, {end}), or no concept is given; no effect can be measured."
        )
    orders = np.repeat(tokens, len(concepts)).astype(np.int32)
    ids = np.tile(np.asarray(concepts, np.int32), len(tokens))
    in_head = _removed_in_head(bundle, hidden_rows(bundle, trace)[orders], shares.token_ids[orders], ids, head)
    in_pass = _removed_in_pass(bundle, trace, shares, orders, ids, head, layer)
    scores = dict(zip(REMOVALS, (in_head[:, 1], in_head[:, 2], in_pass), strict=True))
    drop = {name: in_head[:, 0] - values for name, values in scores.items()}
    return ConceptEffects(
        head,
        orders,
        shares.positions[orders],
        ids,
        _direct(shares, orders, ids, head),
        {name: values[:, 0] for name, values in drop.items()},
        {name: values[:, 1] for name, values in drop.items()},
    )


def _direct(shares: Contributions, orders: np.ndarray, ids: np.ndarray, head: Head) -> np.ndarray:
    """Contributions (p,) float32 of the pairs, 0 for concepts that are not listed."""
    listed, values = (
        (shares.known_ids, shares.known_contributions)
        if head == "known"
        else (shares.discovered_ids, shares.discovered_contributions)
    )
    return np.where(listed[orders] == ids[:, None], values[orders], 0.0).sum(axis=1).astype(np.float32)


def _removed_in_head(bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray, ids: np.ndarray, head: Head) -> np.ndarray:
    """The scores (p, 3, 2) of `_at_head` for hidden (p, D), tokens and ids (p,), in calls of a fixed size."""
    parts = []
    for first in range(0, len(ids), _PAIRS):
        rows = np.minimum(np.arange(first, first + _PAIRS), len(ids) - 1)
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
    """Logits and log-probabilities of the tokens, (P, 3, 2): unchanged, removed "frozen" and removed "published"."""

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
    return _scores(params, rows.reshape(-1, rows.shape[-1]), jnp.repeat(tokens, 3), compute).reshape(-1, 3, 2)


def _scores(params: Params, features: jax.Array, tokens: jax.Array, compute: Compute) -> jax.Array:
    """(N, 2): logit and log-probability of tokens (N,) for features (N, D)."""
    logits = lm_logits(params, features, compute)
    picked = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return jnp.stack([picked, -optax.softmax_cross_entropy_with_integer_labels(logits, tokens)], axis=1)


def _removed_in_pass(
    bundle: Bundle, trace: Trace, shares: Contributions, orders: np.ndarray, ids: np.ndarray, head: Head, layer: int
) -> np.ndarray:
    """Logits and log-probabilities (p, 2) of the tokens with each pair's direction removed from the whole pass."""
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
                np.stack([canvases[step] for step in at]),
                positions[rows],
                tokens[rows],
                ids[rows],
                np.int32(trace.prompt_length),
                np.int32(len(trace.tokens)),
                tables,
                np.int32(layer),
                head=head,
                mask_id=mask_id,
                config=config,
                compute=bundle.compute,
            )
        )
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


@partial(jax.jit, static_argnames=("head", "mask_id", "config", "compute"))
def _in_pass(
    params: Params,
    canvases: jax.Array,
    positions: jax.Array,
    tokens: jax.Array,
    ids: jax.Array,
    prompt: jax.Array,
    total: jax.Array,
    tables: Sequence[jax.Array],
    layer: jax.Array,
    *,
    head: Head,
    mask_id: int,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """(B, 2) for canvases (B, S) of `total` positions each, then padding; positions, tokens and ids (B,), steered by
    tables (B, L, D)."""
    direction = concept_embeddings(params, ids, head=head, config=config, compute=compute)
    direction = direction / jnp.maximum(jnp.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    steering = steering_of_canvases(canvases, prompt, mask_id, tables[0], tables[1])
    edits = (*steering, project_out(direction, from_layer(layer, config.n_layers)))
    x, at = embed_tokens(params, canvases, compute), jnp.arange(canvases.shape[1])
    mask = block_causal_mask(at, at, config.diff_block_size) & (at < total)[None, :]
    hidden = run_backbone(params, x, config=config, compute=compute, attention=mask, edits=edits).hidden
    rows = hidden[jnp.arange(len(positions)), positions]
    return _scores(params, logit_features(params, rows, config, compute), tokens, compute)

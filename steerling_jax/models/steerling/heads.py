"""One pass through a concept head: features, the reported concepts, clamps, and the dense view on request."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.head_view import HeadSpec, HeadView, view_head

EpsilonRule = Literal["published", "frozen"]


class Clamps(NamedTuple):
    """Concept activations set by hand: ids (J,) int32, values (J,) float32, at positions (N,) bool."""

    ids: jax.Array
    values: jax.Array
    positions: jax.Array


class HeadOutput(NamedTuple):
    """features (N, D); plain (N, D), the same without clamps; topk_logits and topk_indices (N, K), or None;
    logits and weights (N, C) only when asked for."""

    features: jax.Array
    plain: jax.Array
    topk_logits: jax.Array
    topk_indices: jax.Array
    logits: jax.Array | None
    weights: jax.Array | None


class _Kept(NamedTuple):
    """Concepts kept at each position, (N, K) each; None in place of this means all are kept."""

    logits: jax.Array
    indices: jax.Array


def run_head(
    params: dict,
    hidden: jax.Array,
    spec: HeadSpec,
    compute: Compute,
    clamps: Clamps | None = None,
    rule: EpsilonRule = "published",
    dense: bool = False,
    large: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> HeadOutput:
    """hidden (N, D) through one head.

    Clamping follows the published package: up to `large` concepts on the dense weights, which keep `topk` (not
    `topk_features`) everywhere; above, as a correction to the features. Under the frozen rule a clamp moves the plain
    features by exactly (value − what the concept contributed) · E_c.
    """
    view = view_head(params, spec, compute, hidden)
    reported = _Kept(*bn.top_concepts(view, spec.topk or bn.REPORTED_WITHOUT_TOPK, spec.block, compute.operands))
    if spec.topk_features is None:
        kept, plain = None, bn.mix_all(view, spec.block, compute)
    else:
        kept = reported
        if spec.topk_features != spec.topk:
            kept = _Kept(*bn.top_concepts(view, spec.topk_features, spec.block, compute.operands))
            reported = _Kept(*(a[:, : spec.topk] for a in kept)) if spec.topk_features > (spec.topk or 0) else kept
        plain = bn.mix_concepts(view, kept.indices, jax.nn.sigmoid(kept.logits), spec.block, compute)
    features = plain
    sparse = spec.n_concepts > large
    if clamps is not None:
        features = _clamped(view, spec, compute, clamps, rule, sparse, plain, kept)
    logits, weights = _dense(view, spec, compute, clamps) if dense else (None, None)
    return HeadOutput(features, plain, reported.logits, reported.indices, logits, weights)


def _clamped(
    view: HeadView,
    spec: HeadSpec,
    compute: Compute,
    clamps: Clamps,
    rule: EpsilonRule,
    sparse: bool,
    plain: jax.Array,
    kept: _Kept | None,
) -> jax.Array:
    ids = jnp.broadcast_to(clamps.ids[None, :], (view.query.shape[0], clamps.ids.shape[0]))
    now = jax.nn.sigmoid(bn.logits_of(view, ids, compute.operands))
    base = plain
    if rule == "frozen":
        now = now if kept is None else jnp.where(_isin(ids, kept.indices), now, 0.0)
    elif not sparse and spec.topk is not None:
        dense_kept = _Kept(*bn.top_concepts(view, spec.topk, spec.block, compute.operands))
        unkept = 0.5 if spec.topk_on_logits else 0.0  # a zeroed logit still weighs sigmoid(0)
        now = jnp.where(_isin(ids, dense_kept.indices), now, unkept)
        if unkept or spec.topk_features != spec.topk:
            excess = jax.nn.sigmoid(dense_kept.logits) - unkept
            base = bn.mix_concepts(view, dense_kept.indices, excess, spec.block, compute)
            base = base + (unkept * bn.embedding_sum(view)).astype(base.dtype)[None, :]
    delta = jnp.where(clamps.positions[:, None], clamps.values[None, :] - now, 0.0)
    return base + (delta @ bn.embeddings(view, clamps.ids)).astype(base.dtype)


def _isin(ids: jax.Array, kept: jax.Array) -> jax.Array:
    """(N, J) whether each id is among that row's kept concepts (N, K)."""
    return (ids[:, :, None] == kept[:, None, :]).any(axis=-1)


def _dense(view: HeadView, spec: HeadSpec, compute: Compute, clamps: Clamps | None) -> tuple[jax.Array, jax.Array]:
    """Every logit (N, C) and the weight that the dense rule gives it, clamps included."""
    logits = bn.dense_logits(view, compute.operands)
    weights = jax.nn.sigmoid(logits)
    if spec.topk is not None:
        best, index = lax.top_k(logits, min(spec.topk, spec.n_concepts))
        fill = 0.5 if spec.topk_on_logits else 0.0
        weights = bn.scatter_rows(index, jax.nn.sigmoid(best), spec.n_concepts, fill)
    if clamps is not None:
        clamped = weights.at[:, clamps.ids].set(clamps.values[None, :])
        weights = jnp.where(clamps.positions[:, None], clamped, weights)
    return logits, weights

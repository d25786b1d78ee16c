"""One pass through a concept head: features, reported concepts, clamps, and the logits of all concepts on request.

Legend: N positions, D width, C concepts, K selected concepts, J clamped concepts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import HeadSpec, HeadView, discovered_spec, known_spec, view_head

EpsilonRule = Literal["published", "frozen"]


class Clamps(NamedTuple):
    """Concept activations set by the user: ids (J,) int32, values (J,) float32, at positions (N,) bool."""

    ids: jax.Array
    values: jax.Array
    positions: jax.Array


class HeadOutput(NamedTuple):
    """The output of one head at N positions.

    features (N, D); unclamped (N, D), the same without clamps; topk_logits, topk_weights (N, K) float32 and
    topk_indices (N, K) int32, the reported concepts, largest first; logits and weights (N, C), None unless requested.
    """

    features: jax.Array
    unclamped: jax.Array
    topk_logits: jax.Array
    topk_weights: jax.Array
    topk_indices: jax.Array
    logits: jax.Array | None
    weights: jax.Array | None


class _Selected(NamedTuple):
    """The concepts selected at each position, (N, K) each; where it is None, all concepts are selected."""

    logits: jax.Array
    indices: jax.Array


def run_known_head(
    params: dict,
    hidden: jax.Array,
    config: ModelConfig,
    compute: Compute,
    clamps: Clamps | None = None,
    rule: EpsilonRule = "published",
    dense: bool = False,
    large: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> HeadOutput:
    """The known head of the model `params` at hidden (N, D); see `run_head`."""
    assert config.concept is not None
    return run_head(params["known_head"], hidden, known_spec(config.concept), compute, clamps, rule, dense, large)


def run_discovered_head(
    params: dict,
    hidden: jax.Array,
    config: ModelConfig,
    compute: Compute,
    clamps: Clamps | None = None,
    rule: EpsilonRule = "published",
    dense: bool = False,
    large: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> HeadOutput | None:
    """The discovered head of the model `params` at hidden (N, D), None where the model has none; see `run_head`."""
    assert config.concept is not None
    spec = discovered_spec(config.concept)
    if spec is None:
        return None
    return run_head(params["unknown_head"], hidden, spec, compute, clamps, rule, dense, large)


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
    """The head with `params` at hidden (N, D).

    Clamping follows the published package. In a head of up to `large` concepts it acts on the dense weights, which
    select `topk` (not `topk_features`) concepts at every position; in a larger one it is a correction to the features.
    Under the frozen rule, and in a dictionary always, a clamp moves the unclamped features by exactly (value − what the
    concept contributed) · E_c.
    dense: also return the logits and weights of all concepts.
    """
    view = view_head(params, spec, compute, hidden)
    if spec.topk_features is None:  # exactly where `topk` is None too
        selected, unclamped = None, bn.mix_all(view, spec.block, compute)
        reported = _Selected(*bn.top_concepts(view, bn.REPORTED_WITHOUT_TOPK, spec.block, compute.operands))
    else:
        selected = _Selected(*bn.top_concepts(view, spec.topk_features, spec.block, compute.operands))
        reported = _Selected(*(a[:, : spec.topk] for a in selected))  # sorted, so its best are a prefix
        unclamped = bn.mix_concepts(view, selected.indices, view.weights(selected.logits), spec.block, compute)
    features = unclamped
    sparse = spec.n_concepts > large
    if clamps is not None:
        features = _clamped(view, spec, compute, clamps, rule, sparse, unclamped, selected)
    logits, weights = _dense(view, spec, compute, clamps) if dense else (None, None)
    return HeadOutput(
        features, unclamped, reported.logits, view.weights(reported.logits), reported.indices, logits, weights
    )


def _clamped(
    view: HeadView,
    spec: HeadSpec,
    compute: Compute,
    clamps: Clamps,
    rule: EpsilonRule,
    sparse: bool,
    unclamped: jax.Array,
    selected: _Selected | None,
) -> jax.Array:
    """The features (N, D) with clamps: `base + Σ_j (value_j − weight_j) E_j`, at the clamped positions.

    The rules differ in the weight that a clamped concept had before, and in the base that the others make up.
    """
    ids = jnp.broadcast_to(clamps.ids[None, :], (view.query.shape[0], clamps.ids.shape[0]))
    weight = view.weights(bn.logits_of(view, ids, compute.operands))
    base = unclamped
    if rule == "frozen" or spec.dictionary:
        # A concept that is not selected contributes nothing to the features, whatever its logit.
        weight = weight if selected is None else jnp.where(_isin(ids, selected.indices), weight, 0.0)
    elif not sparse and spec.topk is not None:
        # The published package clamps the dense weights of this head, and those select `topk` concepts even where the
        # features are made of `topk_features`. So the base is recomputed from the dense weights.
        dense = _Selected(*bn.top_concepts(view, spec.topk, spec.block, compute.operands))
        fill = _weight_outside_topk(spec)
        weight = jnp.where(_isin(ids, dense.indices), weight, fill)
        if fill or spec.topk_features != spec.topk:
            # Σ_c weight_c E_c = Σ_selected (weight − fill) E + fill · Σ_c E_c: no (N, C) array of weights is built.
            excess = jax.nn.sigmoid(dense.logits) - fill
            base = bn.mix_concepts(view, dense.indices, excess, spec.block, compute)
            base = base + (fill * bn.embedding_sum(view)).astype(base.dtype)[None, :]
    delta = jnp.where(clamps.positions[:, None], clamps.values[None, :] - weight, 0.0)
    return base + (delta @ bn.embeddings(view, clamps.ids)).astype(base.dtype)


def _weight_outside_topk(spec: HeadSpec) -> float:
    """The dense weight of a concept outside the top k: with `topk_on_logits` its logit is set to 0, and sigmoid(0) is
    0.5."""
    return 0.5 if spec.topk_on_logits else 0.0


def _isin(ids: jax.Array, selected: jax.Array) -> jax.Array:
    """(N, J) bool, whether each of ids (N, J) is among the same row of selected (N, K)."""
    return (ids[:, :, None] == selected[:, None, :]).any(axis=-1)


def _dense(view: HeadView, spec: HeadSpec, compute: Compute, clamps: Clamps | None) -> tuple[jax.Array, jax.Array]:
    """All logits (N, C) and the weights (N, C) of the dense rule, with clamps."""
    logits = bn.dense_logits(view, compute.operands)
    weights = view.weights(logits)
    if spec.topk is not None:
        best, index = lax.top_k(logits, min(spec.topk, spec.n_concepts))
        weights = bn.scatter_rows(index, view.weights(best), spec.n_concepts, _weight_outside_topk(spec))
    if clamps is not None:
        clamped = weights.at[:, clamps.ids].set(clamps.values[None, :])
        weights = jnp.where(clamps.positions[:, None], clamped, weights)
    return logits, weights

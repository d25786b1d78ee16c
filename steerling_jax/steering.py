"""Steering, from concept ids to what decoding needs: a direction, its strength and schedule, words to hold down.

Source: `_prepare_steering`, `_resolve_alpha` and `_build_relu_mask` of the published package.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.backbone import Params, lm_head_weight
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.generation_config import SteeringConfig


class Steering(NamedTuple):
    """direction (D,) in the compute dtype, or None where nothing is injected; suppression (V,) float32.

    alpha is injected at layers numbered at least `layer`, until `cutoff` tokens are written (None: always).
    """

    direction: jax.Array | None
    alpha: float
    layer: int
    cutoff: int | None
    suppression: jax.Array

    def alpha_after(self, written: int) -> float:
        """The strength when `written` tokens have been committed."""
        return self.alpha if self.cutoff is None or written < self.cutoff else 0.0


def prepare_steering(
    params: Params, steering: SteeringConfig | None, *, config: ModelConfig, compute: Compute
) -> Steering:
    """Raises `UserError` where the model has no such concepts."""
    if steering is None:
        return Steering(None, 0.0, 0, None, jnp.zeros(config.vocab_size))
    steering.check(config)
    direction, alpha = None, 0.0
    if steering.concept_ids:
        unit, peak = concept_direction(params, steering.concept_ids)
        direction = unit.astype(compute.dtype)
        alpha = steering.mai_lm_target / (peak if steering.normalize_mai_lm_target else 1.0)
    layer = config.n_layers // 2 if steering.inject_layer is None else steering.inject_layer
    cutoff = steering.cutoff_tokens if steering.inject_alpha_schedule == "hard_cutoff" else None
    return Steering(direction, alpha, layer, cutoff, _suppression(params, steering, config))


def concept_direction(params: Params, concept_ids: tuple[int, ...]) -> tuple[jax.Array, float]:
    """The unit direction (D,) float32 of the concepts' summed embeddings, and its best alignment with a token."""
    total = _embeddings(params, concept_ids).sum(axis=0)
    unit = total / (jnp.linalg.norm(total) + 1e-12)
    peak = jnp.max(lm_head_weight(params).astype(jnp.float32) @ unit)
    return unit, max(float(peak), 1e-6)


def _suppression(params: Params, steering: SteeringConfig, config: ModelConfig) -> jax.Array:
    """`Σ strength · relu(lm_head · E_c)`, (V,) float32."""
    if not steering.relu_logit_mask:
        return jnp.zeros(config.vocab_size)
    strengths = jnp.asarray(list(steering.relu_logit_mask.values()), jnp.float32)
    aligned = _embeddings(params, tuple(steering.relu_logit_mask)) @ lm_head_weight(params).astype(jnp.float32).T
    return strengths @ jnp.maximum(aligned, 0.0)


def _embeddings(params: Params, concept_ids: tuple[int, ...]) -> jax.Array:
    table = params["known_head"]["concept_embedding"]["weight"]
    return jnp.take(table, jnp.asarray(concept_ids, jnp.int32), axis=0).astype(jnp.float32)

"""Steering, from what was asked for to what decoding needs: directions by layer, clamps, words to hold down.

Source: `_prepare_steering`, `_resolve_alpha` and `_build_relu_mask` of the published package. Several steerings act
together: their injections and their suppressions are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps
from steerling_jax.models.steerling.heads import EpsilonRule
from steerling_jax.steering.config import SteeringConfig

_ALWAYS = 2**30  # offset that no text reaches


@dataclass(frozen=True)
class InjectedDirection:
    """`alpha · direction` after layers numbered at least `layer`, until `cutoff` tokens are written (None: always).

    direction (D,) float32, rounded to the compute dtype. where: "masks" or "prompt".
    """

    direction: np.ndarray
    alpha: float
    layer: int
    cutoff: int | None
    where: str


@dataclass(frozen=True)
class ClampPlan:
    """Concept id to activation for either head (None: no clamp), at the half-open `offsets` after the prompt (None:
    all)."""

    known: dict[int, float] | None
    discovered: dict[int, float] | None
    offsets: tuple[int, int] | None
    epsilon: EpsilonRule

    def rows(self) -> RowClamps:
        """The same as the heads take it."""

        def arrays(values: dict[int, float] | None) -> tuple[jax.Array, jax.Array] | None:
            return (jnp.array(list(values)), jnp.array(list(values.values()))) if values else None

        start, end = self.offsets or (0, _ALWAYS)
        return RowClamps(arrays(self.known), arrays(self.discovered), jnp.int32(start), jnp.int32(end), self.epsilon)


@dataclass(frozen=True)
class SteeringPlan:
    """suppression (V,) float32 is taken from the logits; labels: of the steerings that do something; width: D."""

    parts: tuple[InjectedDirection, ...]
    suppression: jax.Array
    clamps: ClampPlan | None
    labels: tuple[str, ...]
    width: int

    def tables(self, written: int, n_layers: int) -> tuple[np.ndarray, np.ndarray]:
        """What is added after each layer when `written` tokens are committed, at masked and at prompt positions.

        Two (L, D) float32; row l belongs to the layer with the number l + 1.
        """
        masks, prompt = (np.zeros((n_layers, self.width), np.float32) for _ in range(2))
        for part in self.parts:
            if part.cutoff is None or written < part.cutoff:
                table = masks if part.where == "masks" else prompt
                table[max(part.layer - 1, 0) :] += np.float32(part.alpha) * part.direction
        return masks, prompt

    def next_change(self, written: int) -> int | None:
        """The number of written tokens at which `tables` changes next; None where it stays as it is."""
        later = [part.cutoff for part in self.parts if part.cutoff is not None and part.cutoff > written]
        return min(later, default=None)

    @property
    def steers_prompt(self) -> bool:
        return any(part.where == "prompt" for part in self.parts)


Steering = SteeringConfig | Sequence[SteeringConfig] | SteeringPlan  # several act together


def prepare_steering(
    params: Params,
    steering: Steering | None,
    *,
    config: ModelConfig,
    compute: Compute,
) -> SteeringPlan:
    """A plan; one that is a plan already stays as it is. Raises `UserError` where the model has no such concepts, or
    two steerings' clamps do not go together."""
    if isinstance(steering, SteeringPlan):
        return steering
    several = () if steering is None else (steering,) if isinstance(steering, SteeringConfig) else tuple(steering)
    parts: list[InjectedDirection] = []
    labels: list[str] = []
    suppression = jnp.zeros(config.vocab_size)
    for one in several:
        one.check(config)
        reaches = one.injects and one.first_layer(config.n_layers) <= config.n_layers
        if reaches:
            parts.append(_injected(params, one, config, compute))
        if one.relu_logit_mask:
            suppression = suppression + _suppression(params, one.relu_logit_mask)
        if reaches or one.clamps or any((one.relu_logit_mask or {}).values()):
            labels.append(one.describe())
    return SteeringPlan(tuple(parts), suppression, clamp_plan(several), tuple(labels), config.n_embd)


def concept_direction(
    params: Params, concept_ids: Sequence[int], weights: Sequence[float] | None = None
) -> tuple[jax.Array, float]:
    """The unit direction (D,) float32 of the concepts' (weighted) summed embeddings, and its best alignment with a
    token, at least 1e-6."""
    rows = _embeddings(params, concept_ids)
    if weights is not None:
        rows = rows * jnp.asarray(weights, jnp.float32)[:, None]
    total = rows.sum(axis=0)
    unit = total / (jnp.linalg.norm(total) + 1e-12)
    peak = jnp.max(lm_head_weight(params).astype(jnp.float32) @ unit)
    return unit, max(float(peak), 1e-6)


def _injected(params: Params, one: SteeringConfig, config: ModelConfig, compute: Compute) -> InjectedDirection:
    unit, peak = concept_direction(params, one.concept_ids, one.weights)
    direction = np.asarray(unit.astype(compute.dtype).astype(jnp.float32))
    alpha = one.mai_lm_target / (peak if one.normalize_mai_lm_target else 1.0)
    cutoff = one.cutoff_tokens if one.inject_alpha_schedule == "hard_cutoff" else None
    return InjectedDirection(direction, alpha, one.first_layer(config.n_layers), cutoff, one.where)


def _suppression(params: Params, strengths: Mapping[int, float]) -> jax.Array:
    """`Σ strength · relu(lm_head · E_c)`, (V,) float32."""
    aligned = _embeddings(params, tuple(strengths)) @ lm_head_weight(params).astype(jnp.float32).T
    return jnp.asarray(list(strengths.values()), jnp.float32) @ jnp.maximum(aligned, 0.0)


def clamp_plan(several: Sequence[SteeringConfig]) -> ClampPlan | None:
    """All clamps together: of different concepts, at the same offsets, with the same epsilon. Raises `UserError` where
    they are not."""
    clamping = [one for one in several if one.clamps]
    if not clamping:
        return None
    first = clamping[0]
    known: dict[int, float] = {}
    discovered: dict[int, float] = {}
    for one in clamping:
        if (one.clamp_offsets, one.epsilon) != (first.clamp_offsets, first.epsilon):
            raise UserError(
                f"{first.describe()!r} and {one.describe()!r} clamp concepts at different positions or with different "
                "epsilon; give both the same."
            )
        for found, values in ((known, one.intervene_known or {}), (discovered, one.intervene_unknown or {})):
            if twice := found.keys() & values.keys():
                raise UserError(f"{one.describe()!r} clamps concept {min(twice)}, as another steering does; keep one.")
            found.update(values)
    return ClampPlan(known or None, discovered or None, first.clamp_offsets, first.epsilon)


def _embeddings(params: Params, concept_ids: Sequence[int]) -> jax.Array:
    table = params["known_head"]["concept_embedding"]["weight"]
    return jnp.take(table, jnp.asarray(concept_ids, jnp.int32), axis=0).astype(jnp.float32)

"""`SteeringPlan`: steering as decoding applies it, vectors to add by layer, tokens to suppress and clamps.

Source: `_prepare_steering`, `_resolve_alpha` and `_build_relu_mask` of the published package. Several configurations
act together: their injections and their suppressions are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import concept_embeddings
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import BackboneConfig, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps
from steerling_jax.models.steerling.heads import EpsilonRule
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.features import FeatureSteering

NO_CONCEPTS = (
    "Steering needs a model with concepts; steer this one by features (sj.with_features), or give it layer edits with "
    "edits=."
)
_NO_END = 2**30  # an offset beyond any context


@dataclass(frozen=True)
class InjectedDirection:
    """`alpha · direction`, added after every layer whose number is at least `layer`.

    direction: (D,) float32, rounded to the compute dtype. cutoff: the injection ends once this many tokens are
    committed; None: never. where: at "masks" or at the "prompt".
    """

    direction: np.ndarray
    alpha: float
    layer: int
    cutoff: int | None
    where: str


@dataclass(frozen=True)
class ClampPlan:
    """The clamps of all configurations: concept id to activation for either head (None: no clamp).

    offsets: half-open, counted from the first token after the prompt; None for all.
    """

    known: dict[int, float] | None
    discovered: dict[int, float] | None
    offsets: tuple[int, int] | None
    epsilon: EpsilonRule

    def rows(self) -> RowClamps:
        """The clamps as device arrays, which the concept heads take."""

        def arrays(values: dict[int, float] | None) -> tuple[jax.Array, jax.Array] | None:
            return (jnp.array(list(values)), jnp.array(list(values.values()))) if values else None

        start, end = self.offsets or (0, _NO_END)
        return RowClamps(arrays(self.known), arrays(self.discovered), jnp.int32(start), jnp.int32(end), self.epsilon)


@dataclass(frozen=True)
class SteeringPlan:
    """What is added to layers and subtracted from logits, and which concepts are clamped.

    suppression: (V,) float32, subtracted from the logits. labels: of the configurations that have an effect on this
    model. width: D. features: those whose directions are added; their changes are layer edits of the request, beside
    the plan.
    """

    parts: tuple[InjectedDirection, ...]
    suppression: jax.Array
    clamps: ClampPlan | None
    labels: tuple[str, ...]
    width: int
    features: tuple[FeatureSteering, ...] = ()

    def tables(self, written: int, n_layers: int) -> tuple[np.ndarray, np.ndarray]:
        """What is added after each layer once `written` tokens are committed, at masked and at prompt positions.

        Two arrays (L, D) float32; row l belongs to the layer with the number l + 1.
        """
        masks, prompt = (np.zeros((n_layers, self.width), np.float32) for _ in range(2))
        for part in self.parts:
            if part.cutoff is None or written < part.cutoff:
                table = masks if part.where == "masks" else prompt
                # After every layer from the first on, not only once: the published package injects into each of them.
                table[max(part.layer - 1, 0) :] += np.float32(part.alpha) * part.direction
        return masks, prompt

    def next_change(self, written: int) -> int | None:
        """The number of committed tokens at which `tables` changes next; None if it does not change any more."""
        later = [part.cutoff for part in self.parts if part.cutoff is not None and part.cutoff > written]
        return min(later, default=None)

    @property
    def steers_prompt(self) -> bool:
        return any(part.where == "prompt" for part in self.parts)


Resolved = SteeringConfig | FeatureSteering  # what a rule becomes
ResolvedSteering = Resolved | Sequence[Resolved] | SteeringPlan


def prepare_steering(
    params: Params,
    steering: ResolvedSteering | None,
    *,
    config: BackboneConfig,
    compute: Compute,
) -> SteeringPlan:
    """The plan for this model; a `SteeringPlan` is returned as it is.

    A model without concepts takes `FeatureSteering` only. Raises `UserError` where the model does not have the concepts
    or the layer, or where clamps contradict each other.
    """
    if isinstance(steering, SteeringPlan):
        return steering
    resolved = () if steering is None else (steering,) if isinstance(steering, Resolved) else tuple(steering)
    configs = [one for one in resolved if isinstance(one, SteeringConfig)]
    features = tuple(one for one in resolved if isinstance(one, FeatureSteering))
    for feature in features:
        feature.check(config)
    parts: list[InjectedDirection] = []
    labels: list[str] = []
    suppression = jnp.zeros(config.vocab_size)
    for one in configs:
        if not isinstance(config, ModelConfig):
            raise UserError(NO_CONCEPTS, "steering")
        one.check(config)
        if one.injects:
            parts.append(_injection(params, one, config, compute))
        if one.relu_logit_mask:
            suppression = suppression + _suppression(params, one.relu_logit_mask, one.head, config, compute)
        if one.injects or one.clamps or any((one.relu_logit_mask or {}).values()):
            labels.append(one.describe())
    return SteeringPlan(tuple(parts), suppression, merge_clamps(configs), tuple(labels), config.width, features)


def _direction(params: Params, one: SteeringConfig, config: ModelConfig, compute: Compute) -> tuple[jax.Array, float]:
    """The unit direction (D,) float32 of the concepts' summed (and weighted) embeddings, and its largest dot product
    with a row of the output projection, at least 1e-6."""
    rows = _embeddings(params, one.concept_ids, one.head, config, compute)
    if one.weights is not None:
        rows = rows * jnp.asarray(one.weights, jnp.float32)[:, None]
    total = rows.sum(axis=0)
    unit = total / (jnp.linalg.norm(total) + 1e-12)
    peak = jnp.max(lm_head_weight(params).astype(jnp.float32) @ unit)
    return unit, max(float(peak), 1e-6)


def _injection(params: Params, one: SteeringConfig, config: ModelConfig, compute: Compute) -> InjectedDirection:
    unit, peak = _direction(params, one, config, compute)
    # The direction alone is rounded. It is scaled in float32, so that several injections are summed without rounding.
    direction = np.asarray(unit.astype(compute.dtype).astype(jnp.float32))
    # Divided by the peak, alpha · direction raises the logit of the best-aligned token by the target, in any model.
    alpha = one.mai_lm_target / (peak if one.normalize_mai_lm_target else 1.0)
    cutoff = one.cutoff_tokens if one.inject_alpha_schedule == "hard_cutoff" else None
    return InjectedDirection(direction, alpha, one.first_layer(config.n_layers), cutoff, one.where)


def _suppression(
    params: Params, strengths: Mapping[int, float], head: Head, config: ModelConfig, compute: Compute
) -> jax.Array:
    """`Σ strength · relu(lm_head · E_c)`, (V,) float32."""
    aligned = (
        _embeddings(params, tuple(strengths), head, config, compute) @ lm_head_weight(params).astype(jnp.float32).T
    )
    return jnp.asarray(list(strengths.values()), jnp.float32) @ jnp.maximum(aligned, 0.0)


def merge_clamps(configs: Sequence[SteeringConfig]) -> ClampPlan | None:
    """The clamps of all configurations; None if there are none.

    Raises `UserError` where two clamp the same concept, or differ in their offsets or their epsilon: a forward pass has
    one of each.
    """
    # Injections and suppressions of several configurations are summed, but an activation can have one value only.
    clamping = [one for one in configs if one.clamps]
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
        for merged, values in ((known, one.intervene_known or {}), (discovered, one.intervene_unknown or {})):
            if twice := merged.keys() & values.keys():
                raise UserError(f"{one.describe()!r} clamps concept {min(twice)}, as another steering does; keep one.")
            merged.update(values)
    return ClampPlan(known or None, discovered or None, first.clamp_offsets, first.epsilon)


def _embeddings(
    params: Params, concept_ids: Sequence[int], head: Head, config: ModelConfig, compute: Compute
) -> jax.Array:
    """The embeddings (J, D) float32 of concepts of a head."""
    if head == "discovered":
        return concept_embeddings(
            params, jnp.asarray(concept_ids, jnp.int32), head=head, config=config, compute=compute
        )
    # The table itself and not the head's view of it, as published.
    table = params["known_head"]["concept_embedding"]["weight"]
    return jnp.take(table, jnp.asarray(concept_ids, jnp.int32), axis=0).astype(jnp.float32)

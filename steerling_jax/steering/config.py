"""`SteeringConfig`: which concepts are injected, clamped or suppressed, and how strongly.

Source: `SteeringConfig` of the `steerling` 0.2.0 package: its names, defaults and presets. The fields from `weights` on
are extensions.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steerling_jax.concepts.concept import HEADS, Head
from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.steering.composition import Composable

# Of strengths and activations. Hidden states scaled by more overflow in float32, and the logits become NaN.
MAX_STRENGTH = 1e4


@dataclass(frozen=True)
class SteeringConfig(Composable):
    """Steering by concepts: a direction of concepts is injected, tokens are suppressed, activations are clamped.

    concept_ids: concepts of `head` whose embeddings are summed to the direction that is injected.
    mai_lm_target: strength, in logit units of the direction's best-aligned token if `normalize_mai_lm_target`, else the
    length of the vector that is added.
    inject_layer: inject after every layer whose number (from 1) is at least this; None for half the layers.
    inject_alpha_schedule: 'fixed', or 'hard_cutoff' to stop injecting after `cutoff_tokens` committed tokens.
    relu_logit_mask: concept id to the strength with which the tokens that it promotes are suppressed.
    weights: one for each concept id, in the summed direction; None for all 1.
    where: inject at masked positions ('masks') or at those of the prompt ('prompt').
    intervene_known, intervene_unknown: known or discovered concept id to the activation that it is set to during
    decoding, at the offsets `clamp_offsets` (half-open, 0 is the first token after the prompt; None for all).
    epsilon: how the correction term behaves under a clamp, see `sj.forward`; under 'published', clamping discovered
    concepts alone changes nothing.
    label: the name of this steering in traces; empty for a description made from the fields.
    head: of `concept_ids` and `relu_logit_mask`, "known" (published) or "discovered".
    Raises `UserError`, with the field's name in `.field`, for an invalid value.
    """

    concept_ids: tuple[int, ...] = ()
    mai_lm_target: float = 0.0
    normalize_mai_lm_target: bool = True
    inject_layer: int | None = None
    inject_alpha_schedule: Literal["fixed", "hard_cutoff"] = "fixed"
    cutoff_tokens: int = 32
    relu_logit_mask: Mapping[int, float] | None = None
    weights: tuple[float, ...] | None = None
    where: Literal["masks", "prompt"] = "masks"
    intervene_known: Mapping[int, float] | None = None
    intervene_unknown: Mapping[int, float] | None = None
    clamp_offsets: tuple[int, int] | None = None
    epsilon: Literal["published", "frozen"] = "published"
    label: str = ""
    head: Head = "known"

    def __post_init__(self) -> None:
        # Values are converted to plain Python numbers, from NumPy or from the strings that JSON has as keys.
        object.__setattr__(self, "concept_ids", _ids("concept_ids", self.concept_ids))
        for name in ("relu_logit_mask", "intervene_known", "intervene_unknown"):
            values = getattr(self, name)
            if values is not None:
                ids, numbers = _ids(name, values), _numbers(name, values.values())
                object.__setattr__(self, name, dict(zip(ids, numbers)))
        for name, choices in (
            ("inject_alpha_schedule", ("fixed", "hard_cutoff")),
            ("where", ("masks", "prompt")),
            ("epsilon", ("published", "frozen")),
            ("head", HEADS),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}, but it must be {choices[0]!r} or {choices[1]!r}.", name)
        _ids("cutoff_tokens", (self.cutoff_tokens,))
        _ids("inject_layer", () if self.inject_layer is None else (self.inject_layer,))
        for name, minimum in (("cutoff_tokens", 1), ("inject_layer", 0)):
            value = getattr(self, name)
            require(value is None or value >= minimum, f"{name} is {value}, but it must be at least {minimum}.", name)
        _numbers("mai_lm_target", (self.mai_lm_target,))
        if self.weights is not None:
            self._check_weights(_numbers("weights", self.weights))
        if self.clamp_offsets is not None:
            self._check_offsets(_ids("clamp_offsets", self.clamp_offsets))

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        object.__setattr__(self, "weights", weights)
        require(
            len(weights) == len(self.concept_ids),
            f"weights has {len(weights)} numbers for {len(self.concept_ids)} concept ids; give one each.",
            "weights",
        )
        require(not weights or any(weights), "weights are all 0; give at least one that is not.", "weights")

    def _check_offsets(self, offsets: tuple[int, ...]) -> None:
        object.__setattr__(self, "clamp_offsets", offsets)
        require(
            len(offsets) == 2 and 0 <= offsets[0] < offsets[1],
            f"clamp_offsets is {offsets}, but it must be a start, from 0, and a later end.",
            "clamp_offsets",
        )

    @classmethod
    def injection(
        cls,
        concept_ids: int | Sequence[int],
        mai_lm_target: float = 8.0,
        inject_layer: int | None = None,
        cutoff_tokens: int = 32,
    ) -> SteeringConfig:
        """The published preset that amplifies concepts during the first `cutoff_tokens` tokens of the text.

        inject_layer: as in the class, None for half the layers. The published preset has 8 for its 32 layers, which a
        small model may not have.
        """
        ids = (concept_ids,) if isinstance(concept_ids, int) else tuple(concept_ids)
        return cls(ids, mai_lm_target, True, inject_layer, "hard_cutoff", cutoff_tokens)

    @classmethod
    def injection_relu(
        cls,
        concept_id: int,
        group_concept_ids: Sequence[int] | None = None,
        mai_lm_target: float = -7.0,
        inject_layer: int | None = None,
        relu_strength: float = 20.0,
    ) -> SteeringConfig:
        """The published preset that unlearns a concept: the direction of it and its group is subtracted, and the tokens
        that it promotes are suppressed."""
        ids = (concept_id, *(i for i in group_concept_ids or () if i != concept_id))
        return cls(ids, mai_lm_target, False, inject_layer, relu_logit_mask={concept_id: relu_strength})

    def check(self, config: ModelConfig) -> None:
        """Raises `UserError` where the model does not have the concepts or the layer that are named."""
        concept = config.concept
        if concept is None:
            raise UserError("Steering needs a model with known concepts; this one has none.")
        counts = dict(zip(HEADS, concept_counts(config), strict=True))
        by_head: tuple[tuple[Head, Iterable[int]], ...] = (
            (self.head, (*self.concept_ids, *(self.relu_logit_mask or {}))),
            ("known", self.intervene_known or ()),
        )
        for head, ids in by_head:
            C = counts[head]
            for i in ids:
                require(C > 0, f"Steering names the {head} concept {i}, but this model has no {head} concepts.")
                require(
                    0 <= i < C, f"Steering names concept {i}, but the {head} concepts of this model are 0 to {C - 1}."
                )
        first, L = self.first_layer(config.n_layers), config.n_layers
        require(
            not self.injects or first <= L,
            f"inject_layer is {first}, but the layers of this model are 1 to {L}; give one of them, or None.",
            "inject_layer",
        )
        U = (concept.n_unknown_concepts or 0) if concept.use_unknown else 0
        for i in self.intervene_unknown or ():
            require(U > 0, "intervene_unknown needs a model with discovered concepts; this one has none.")
            require(0 <= i < U, f"intervene_unknown names concept {i}, but discovered concepts are 0 to {U - 1}.")

    @property
    def injects(self) -> bool:
        return bool(self.concept_ids) and self.mai_lm_target != 0.0

    @property
    def clamps(self) -> bool:
        return bool(self.intervene_known or self.intervene_unknown)

    def first_layer(self, n_layers: int) -> int:
        """The number (from 1) of the first layer after which a model of `n_layers` is injected; 0 means the same as
        1."""
        return n_layers // 2 if self.inject_layer is None else self.inject_layer

    def describe(self) -> str:
        """`label`, or a description such as 'inject 12,40 at 8.0' where there is none."""
        if self.label:
            return self.label
        parts = []
        kind = "" if self.head == "known" else f"{self.head} "
        if self.injects:
            unit = "" if self.normalize_mai_lm_target else " raw"
            place = " in the prompt" if self.where == "prompt" else ""
            parts.append(f"inject {kind}{','.join(map(str, self.concept_ids))} at {self.mai_lm_target}{unit}{place}")
        for verb, values in (
            (f"hold down {kind}".rstrip(), self.relu_logit_mask),
            ("clamp known", self.intervene_known),
            ("clamp discovered", self.intervene_unknown),
        ):
            if values:
                parts.append(f"{verb} {', '.join(f'{i} at {value}' for i, value in values.items())}")
        return "; ".join(parts)


def _ids(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers, also from strings, since the keys of a JSON object are strings."""
    try:
        return tuple(int(i) if isinstance(i, str) else operator.index(i) for i in values)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {values!r}, but it must contain whole numbers.", name) from None


def _numbers(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"{name} contains {list(values)!r}, but these must be numbers.", name) from None
    require(
        all(abs(number) <= MAX_STRENGTH for number in numbers),
        f"{name} contains {list(numbers)}, but these must be finite and at most {MAX_STRENGTH:g}.",
        name,
    )
    return numbers

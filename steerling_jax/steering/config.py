"""What to steer by: concepts injected, concepts clamped, words held down.

Source: `SteeringConfig` of the `steerling` 0.2.0 package, its names, defaults and presets; from `weights` on the fields
are ours.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig

MOST = 1e4  # of strengths and activations: beyond, float32 arithmetic on hidden states gives no numbers any more


@dataclass(frozen=True)
class SteeringConfig:
    """Steering by concepts: a direction of known ones injected, words held down, activations clamped.

    mai_lm_target: strength; in logit units of the direction's best-aligned token when normalised, else the raw alpha.
    inject_layer: inject after layers numbered (from 1) at least this; None for half the layers.
    cutoff_tokens: under 'hard_cutoff', tokens written before the injection ends.
    relu_logit_mask: concept id to the strength with which the words it promotes are held down.
    weights: one a concept id, in the summed direction; None for all 1.
    where: inject at masked positions, or at the prompt's.
    intervene_known, intervene_unknown: concept id to the activation that it is given while text is written, at the
    offsets `clamp_offsets` (half-open, 0 is the first token after the prompt; None for all). epsilon: what becomes of
    the correction under a clamp, see `sj.forward`; as published, clamping discovered concepts alone changes nothing.
    label: what the trace calls this; empty for a label made of the fields.
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

    def __post_init__(self) -> None:
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
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}, but it must be {choices[0]!r} or {choices[1]!r}.")
        _ids("cutoff_tokens", (self.cutoff_tokens,))
        _ids("inject_layer", () if self.inject_layer is None else (self.inject_layer,))
        require(self.cutoff_tokens >= 1, f"cutoff_tokens is {self.cutoff_tokens}, but it must be at least 1.")
        require(
            self.inject_layer is None or self.inject_layer >= 0,
            f"inject_layer is {self.inject_layer}, but it must not be negative.",
        )
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
        )
        require(not weights or any(weights), "weights are all 0, which is no direction; give one that is not.")

    def _check_offsets(self, offsets: tuple[int, ...]) -> None:
        object.__setattr__(self, "clamp_offsets", offsets)
        require(
            len(offsets) == 2 and 0 <= offsets[0] < offsets[1],
            f"clamp_offsets is {offsets}, but it must be a start and a later end, from 0.",
        )

    @classmethod
    def injection(
        cls,
        concept_ids: int | Sequence[int],
        mai_lm_target: float = 8.0,
        inject_layer: int = 8,
        cutoff_tokens: int = 32,
    ) -> SteeringConfig:
        """Amplifies concepts at the start of the text, then lets it run."""
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
        """Unlearns a concept: pushes away from it and its group, and holds its words down."""
        ids = (concept_id, *(i for i in group_concept_ids or () if i != concept_id))
        return cls(ids, mai_lm_target, False, inject_layer, relu_logit_mask={concept_id: relu_strength})

    def check(self, config: ModelConfig) -> None:
        """Raises `UserError` where this model cannot be steered so."""
        concept = config.concept
        if concept is None:
            raise UserError("Steering needs a model with known concepts; this one has none.")
        C = concept.n_concepts
        for i in (*self.concept_ids, *(self.relu_logit_mask or {}), *(self.intervene_known or {})):
            require(0 <= i < C, f"Steering names concept {i}, but this model knows concepts 0 to {C - 1}.")
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
        """The number (from 1) of the first layer after which a model of `n_layers` is injected; 0 is as 1."""
        return n_layers // 2 if self.inject_layer is None else self.inject_layer

    def describe(self) -> str:
        """`label`, or else a line such as 'inject 12,40 at 8.0'."""
        if self.label:
            return self.label
        parts = []
        if self.injects:
            unit = "" if self.normalize_mai_lm_target else " raw"
            place = " in the prompt" if self.where == "prompt" else ""
            parts.append(f"inject {','.join(map(str, self.concept_ids))} at {self.mai_lm_target}{unit}{place}")
        for verb, values in (
            ("hold down", self.relu_logit_mask),
            ("clamp known", self.intervene_known),
            ("clamp discovered", self.intervene_unknown),
        ):
            if values:
                parts.append(f"{verb} {', '.join(f'{i} at {value}' for i, value in values.items())}")
        return "; ".join(parts)


def _ids(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers; those in texts, as JSON's keys are, too."""
    try:
        return tuple(int(i) if isinstance(i, str) else operator.index(i) for i in values)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {values!r}, but it must hold whole numbers.") from None


def _numbers(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"{name} holds {list(values)!r}, but these must be numbers.") from None
    require(
        all(abs(number) <= MOST for number in numbers),
        f"{name} holds {list(numbers)}, but these must be finite and at most {MOST:g}.",
    )
    return numbers

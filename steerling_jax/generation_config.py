"""What to generate and how to steer it: the published names, defaults and presets.

Source: `GenerationConfig` and `SteeringConfig` of the `steerling` 0.2.0 package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steerling_jax.config import ModelConfig
from steerling_jax.errors import UserError

_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate. While `use_entropy_sampling` is on, `temperature` is ignored.

    steps: None for one token a step. seed: None for another text every time. stop_tokens are looked for between
    blocks.
    """

    max_new_tokens: int = 1024
    steps: int | None = None
    temperature: float = 1.2
    cfg_scale: float = 0.0
    seed: int | None = None
    top_p: float = 0.8
    repetition_penalty: float = 1.1
    use_entropy_sampling: bool = True
    stop_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        _require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, but it must be at least 1.")
        _require(self.steps is None or self.steps >= 1, f"steps is {self.steps}, but it must be at least 1.")
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("cfg_scale", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("repetition_penalty", 1.0, math.inf),
        ):
            value, bounds = (
                getattr(self, name),
                f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}",
            )
            _require(low <= value <= high and math.isfinite(value), f"{name} is {value}, but it must be {bounds}.")
        _require(
            self.seed is None or 0 <= self.seed < _SEED_LIMIT,
            f"seed is {self.seed}, but it must be from 0 to {_SEED_LIMIT - 1}.",
        )

    def sampler_blocks(self, config: ModelConfig) -> int:
        """Number of sampler blocks. Raises `UserError` where max_new_tokens or steps do not divide evenly."""
        size = config.diff_block_size
        blocks, rest = divmod(self.max_new_tokens, size)
        _require(
            rest == 0, f"max_new_tokens is {self.max_new_tokens}, but it must be a multiple of the block size, {size}."
        )
        _require(
            self.steps is None or self.steps % blocks == 0,
            f"steps is {self.steps}, but it must be a multiple of the number of blocks, {blocks}.",
        )
        return blocks

    def check(self, config: ModelConfig, prompt: Sequence[int]) -> None:
        """Raises `UserError` where this model cannot continue this prompt (ids) with these settings."""
        self.sampler_blocks(config)
        V = config.vocab_size
        _require(len(prompt) > 0, "The prompt is empty: give it at least one token.")
        for i in prompt:
            _require(0 <= i < V, f"The prompt holds token id {i}, outside the vocabulary: use ids from 0 to {V - 1}.")
        for i in self.stop_tokens or ():
            _require(0 <= i < V, f"stop_tokens holds {i}, outside the vocabulary: use ids from 0 to {V - 1}.")
        _require(
            len(prompt) + self.max_new_tokens <= config.block_size,
            f"The prompt's {len(prompt)} tokens and max_new_tokens, {self.max_new_tokens}, do not fit in the model's "
            f"context of {config.block_size}: shorten one of them.",
        )


@dataclass(frozen=True)
class SteeringConfig:
    """Steering by known concepts: a direction injected where the canvas is masked, and words held down.

    mai_lm_target: strength; in logit units of the direction's best-aligned token when normalised, else the raw alpha.
    inject_layer: inject after layers numbered (from 1) at least this; None for half the layers.
    cutoff_tokens: under 'hard_cutoff', tokens written before the injection ends.
    relu_logit_mask: concept id to the strength with which the words it promotes are held down.
    """

    concept_ids: tuple[int, ...] = ()
    mai_lm_target: float = 0.0
    normalize_mai_lm_target: bool = True
    inject_layer: int | None = None
    inject_alpha_schedule: Literal["fixed", "hard_cutoff"] = "fixed"
    cutoff_tokens: int = 32
    relu_logit_mask: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "concept_ids", tuple(int(i) for i in self.concept_ids))
        if self.relu_logit_mask is not None:
            object.__setattr__(self, "relu_logit_mask", {int(i): float(s) for i, s in self.relu_logit_mask.items()})
        _require(
            self.inject_alpha_schedule in ("fixed", "hard_cutoff"),
            f"inject_alpha_schedule is {self.inject_alpha_schedule!r}, but it must be 'fixed' or 'hard_cutoff'.",
        )
        _require(self.cutoff_tokens >= 1, f"cutoff_tokens is {self.cutoff_tokens}, but it must be at least 1.")
        _require(
            self.inject_layer is None or self.inject_layer >= 0,
            f"inject_layer is {self.inject_layer}, but it must not be negative.",
        )
        _require(math.isfinite(self.mai_lm_target), f"mai_lm_target is {self.mai_lm_target}, but it must be finite.")

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
        if config.concept is None:
            raise UserError("Steering needs a model with known concepts; this one has none.")
        C = config.concept.n_concepts
        for i in (*self.concept_ids, *(self.relu_logit_mask or {})):
            _require(0 <= i < C, f"Steering names concept {i}, but this model knows concepts 0 to {C - 1}.")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)

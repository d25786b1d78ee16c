"""How to generate: the published names and defaults.

Source: `GenerationConfig` of the `steerling` 0.2.0 package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.errors import require
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig as SteeringConfig

_SEED_LIMIT = 2**32
_DEFAULT_LENGTH = 128
# Beyond these, float32 arithmetic on logits gives no numbers any more.
_MOST, _COLDEST = 1e4, 1e-4


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
        for name in ("max_new_tokens", "steps", "seed"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            require(value is None or whole, f"{name} is {value!r}, but it must be a whole number.")
        require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, but it must be at least 1.")
        require(self.steps is None or self.steps >= 1, f"steps is {self.steps}, but it must be at least 1.")
        for name, low, high in (
            ("temperature", 0.0, _MOST),
            ("cfg_scale", 0.0, _MOST),
            ("top_p", 0.0, 1.0),
            ("repetition_penalty", 1.0, _MOST),
        ):
            value = getattr(self, name)
            require(low <= value <= high, f"{name} is {value}, but it must be from {low:g} to {high:g}.")
        require(
            not 0 < self.temperature < _COLDEST,
            f"temperature is {self.temperature}, but it must be at least {_COLDEST:g}, or 0 for the likeliest token.",
        )
        require(
            self.seed is None or 0 <= self.seed < _SEED_LIMIT,
            f"seed is {self.seed}, but it must be from 0 to {_SEED_LIMIT - 1}.",
        )

    def sampler_blocks(self, config: ModelConfig) -> int:
        """Number of sampler blocks. Raises `UserError` where max_new_tokens or steps do not divide evenly."""
        size = config.diff_block_size
        blocks, rest = divmod(self.max_new_tokens, size)
        require(
            rest == 0, f"max_new_tokens is {self.max_new_tokens}, but it must be a multiple of the block size, {size}."
        )
        require(
            self.steps is None or self.steps % blocks == 0,
            f"steps is {self.steps}, but it must be a multiple of the number of blocks, {blocks}.",
        )
        return blocks

    @staticmethod
    def default_length(config: ModelConfig, prompt: int) -> int:
        """max_new_tokens where nobody said: the whole blocks that fit after `prompt` tokens, up to 128 tokens, at least
        one."""
        size = config.diff_block_size
        return max(min(_DEFAULT_LENGTH, config.block_size - prompt) // size, 1) * size

    def check(self, config: ModelConfig, prompt: Sequence[int]) -> None:
        """Raises `UserError` where this model cannot continue this prompt (ids) with these settings."""
        self.sampler_blocks(config)
        V = config.vocab_size
        require(len(prompt) > 0, "The prompt is empty: give it at least one token.")
        for i in prompt:
            require(0 <= i < V, f"The prompt holds token id {i}, outside the vocabulary: use ids from 0 to {V - 1}.")
        for i in self.stop_tokens or ():
            require(0 <= i < V, f"stop_tokens holds {i}, outside the vocabulary: use ids from 0 to {V - 1}.")
        require(
            len(prompt) + self.max_new_tokens <= config.block_size,
            f"The prompt's {len(prompt)} tokens and max_new_tokens, {self.max_new_tokens}, do not fit in the model's "
            f"context of {config.block_size}: shorten one of them.",
        )

"""How to generate: the published names and defaults.

Source: `GenerationConfig` of the `steerling` 0.2.0 package.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig

_DEFAULT_LENGTH = 128
# Logits times or over a number beyond these overflow float32, and the probabilities become NaN.
_LARGEST, _COLDEST = 1e4, 1e-4
# Field: type, smallest and largest value (None: no upper limit).
_RANGES: dict[str, tuple[type, float, float | None]] = {
    "max_new_tokens": (int, 1, None),
    "steps": (int, 1, None),
    "seed": (int, 0, 2**32 - 1),
    "temperature": (float, 0, _LARGEST),
    "cfg_scale": (float, 0, _LARGEST),
    "top_p": (float, 0, 1),
    "repetition_penalty": (float, 1, _LARGEST),
}


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate. While `use_entropy_sampling` is on, `temperature` is ignored.

    max_new_tokens: the most tokens of the text. The canvas has whole blocks: it is longer where this is not a multiple
    of the block, and the text is cut. steps: None for one denoising step a token. seed: None for a new random seed each
    time. stop_tokens: token ids, looked for between blocks. Raises `UserError`, with the field's name in `.field`, for
    an invalid value.
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
        for name in _RANGES:
            value = getattr(self, name)
            if value is not None or name not in ("steps", "seed"):
                object.__setattr__(self, name, _validated(name, value))
        require(
            not 0 < self.temperature < _COLDEST,
            f"temperature is {self.temperature}, but it must be at least {_COLDEST:g}, or 0 for greedy decoding.",
            "temperature",
        )

    def sampler_blocks(self, config: ModelConfig) -> int:
        """Number of sampler blocks: as few as hold max_new_tokens. Raises `UserError` where steps is not a multiple."""
        blocks = -(-self.max_new_tokens // config.diff_block_size)
        require(
            self.steps is None or self.steps % blocks == 0,
            f"steps is {self.steps}, but it must be a multiple of the number of blocks, {blocks}.",
            "steps",
        )
        return blocks

    def canvas_length(self, config: ModelConfig) -> int:
        """Tokens of the canvas after the prompt: max_new_tokens, rounded up to whole blocks."""
        return self.sampler_blocks(config) * config.diff_block_size

    @staticmethod
    def default_length(config: ModelConfig, prompt_length: int) -> int:
        """The default of max_new_tokens after a prompt of `prompt_length` tokens: as many whole blocks as fit in the
        context, at most 128 tokens and at least one block."""
        size = config.diff_block_size
        return max(min(_DEFAULT_LENGTH, config.block_size - prompt_length) // size, 1) * size

    def check(self, config: ModelConfig, prompt: Sequence[int]) -> None:
        """Raises `UserError` where this model cannot continue this prompt (token ids) with these settings."""
        canvas, size = self.canvas_length(config), config.diff_block_size
        V = config.vocab_size
        require(len(prompt) > 0, "The prompt is empty: give it at least one token.", "prompt")
        for name, ids in (("prompt", prompt), ("stop_tokens", self.stop_tokens or ())):
            for i in ids:
                require(
                    0 <= i < V,
                    f"{name} contains token id {i}, outside the vocabulary: use ids from 0 to {V - 1}.",
                    name,
                )
        require(
            len(prompt) + canvas <= config.block_size,
            f"The prompt's {len(prompt)} tokens and max_new_tokens, {_shortened(str(self.max_new_tokens))} in whole "
            f"blocks of {size}, do not fit in the model's context of {config.block_size}: shorten one of them.",
            "prompt",
        )


def _validated(name: str, value: Any) -> Any:
    """A field's value within its range; real numbers become floats where the field is one."""
    kind, low, high = _RANGES[name]
    # The abstract classes, which NumPy's scalars are registered with, too.
    if not isinstance(value, numbers.Integral if kind is int else numbers.Real) or isinstance(value, bool):
        noun = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {_shortened(repr(value))}, but it must be {noun}.", name)
    # Compared before the conversion, since an integer can be too large for a float; NaN fails the comparison.
    number: Any = value
    if not (low <= number and (high is None or number <= high)):
        bounds = f"at least {low}" if high is None else f"from {low} to {high:.10g}"
        raise UserError(f"{name} is {_shortened(str(value))}, but it must be {bounds}.", name)
    return float(value) if kind is float else value


def _shortened(text: str) -> str:
    """A value for an error message. A number in JSON can have thousands of digits."""
    return text if len(text) <= 60 else f"{text[:57]}..."

"""How to generate: the published names and defaults, and what they mean for models that write token by token.

Source: `GenerationConfig` of the `steerling` 0.2.0 package. `top_k` is an addition.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from steerling_jax.errors import UserError, require
from steerling_jax.models.decoder.config import DecoderConfig
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
    "top_k": (int, 1, 2**30),
}
_OPTIONAL = ("steps", "seed", "top_k")
# What fields that were not given mean for an autoregressive model: samples from the model's own distribution.
_PLAIN_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "use_entropy_sampling": False,
}


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate. While `use_entropy_sampling` is on, `temperature` is ignored.

    max_new_tokens: the most tokens of the text. The canvas has whole blocks: it is longer where this is not a multiple
    of the block, and the text is cut. steps: None for one denoising step a token. seed: None for a new random seed each
    time. stop_tokens: token ids that end the text; a diffusion model looks for them between blocks. top_k: only the k
    most likely tokens are drawn, and `top_p` is a share of their mass; None for no limit. given: names of the fields
    that were set, which `dataclasses.replace` preserves.

    The defaults are those of a Steerling model. An autoregressive model takes fields that are not given as temperature
    1, no limit by `top_p`, no repetition penalty, no entropy sampling, and as many tokens as fit in its context, up to
    1,024. Raises `UserError`, with the field's name in `.field`, for an invalid value.
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
    top_k: int | None = None
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False, kw_only=True)

    def __new__(cls, *values: Any, **named: Any) -> Self:
        # A value that equals the default tells nothing; only the call shows which fields it set.
        config = super().__new__(cls)
        names = [one.name for one in dataclasses.fields(cls)][: len(values)]
        object.__setattr__(config, "_arguments", frozenset(names) | named.keys())
        return config

    def __post_init__(self) -> None:
        arguments: frozenset[str] = vars(self)["_arguments"]
        if "given" in arguments:  # `dataclasses.replace` passes every field
            changed = (one.name for one in dataclasses.fields(self) if getattr(self, one.name) != one.default)
            arguments = self.given | frozenset(changed)
        object.__setattr__(self, "given", arguments - {"given"})
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        for name in _RANGES:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
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

    def canvas_length(self, config: ModelConfig | DecoderConfig) -> int:
        """Positions to fill after the prompt: max_new_tokens, rounded up to the whole blocks of a diffusion model."""
        if not isinstance(config, ModelConfig):
            return self.max_new_tokens
        return self.sampler_blocks(config) * config.diff_block_size

    def plain(self, context: int, prompt_length: int) -> GenerationConfig:
        """These settings as an autoregressive model of this context takes them: with its own defaults in the fields
        that were not given. Raises `UserError` for fields that have a meaning in diffusion only."""
        for name, neutral in (("steps", None), ("cfg_scale", 0.0)):
            require(
                getattr(self, name) == neutral,
                f"{name} is {getattr(self, name)}, but it has a meaning for diffusion models only; leave it out.",
                name,
            )
        room = {"max_new_tokens": max(1, min(self.max_new_tokens, context - prompt_length))}
        unset = {name: value for name, value in (_PLAIN_SAMPLING | room).items() if name not in self.given}
        return dataclasses.replace(self, **unset)

    @staticmethod
    def default_length(config: ModelConfig | DecoderConfig, prompt_length: int) -> int:
        """The default of max_new_tokens after a prompt of `prompt_length` tokens: as many whole blocks as fit in the
        context, at most 128 tokens and at least one block; the block of an autoregressive model is one token."""
        size = config.diff_block_size if isinstance(config, ModelConfig) else 1
        return max(min(_DEFAULT_LENGTH, config.context_length - prompt_length) // size, 1) * size

    def check(self, config: ModelConfig | DecoderConfig, prompt: Sequence[int]) -> None:
        """Raises `UserError` where this model cannot continue this prompt (token ids) with these settings."""
        canvas = self.canvas_length(config)
        V = config.vocab_size
        require(len(prompt) > 0, "The prompt is empty: give it at least one token.", "prompt")
        for name, ids in (("prompt", prompt), ("stop_tokens", self.stop_tokens or ())):
            for i in ids:
                require(
                    0 <= i < V,
                    f"{name} contains token id {i}, outside the vocabulary: use ids from 0 to {V - 1}.",
                    name,
                )
        blocks = f" in whole blocks of {config.diff_block_size}" if isinstance(config, ModelConfig) else ""
        require(
            len(prompt) + canvas <= config.context_length,
            f"The prompt's {len(prompt)} tokens and max_new_tokens, {_shortened(str(self.max_new_tokens))}{blocks}, do "
            f"not fit in the model's context of {config.context_length}: shorten one of them.",
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

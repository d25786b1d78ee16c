"""The settings of one request in JSON, as the server and the batch file take them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.cli.steering_options import from_json
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import clamp_plan

NAMES = (
    "max_tokens",
    "steps",
    "temperature",
    "top_p",
    "repetition_penalty",
    "cfg_scale",
    "seed",
    "stop",
    "steering",
    "trace",
)
# Looking for stop texts costs time with every token.
_MOST_STOPS, _LONGEST_STOP = 4, 256


class BadField(UserError):
    """A request's field that cannot be met. param: its name; code: OpenAI's name of the error, where it has one."""

    def __init__(self, sentence: str, param: str | None, code: str | None = None):
        super().__init__(sentence)
        self.param, self.code = param, code


@dataclass(frozen=True)
class GenerationRequest:
    """What a request asks for. generation: of whole blocks, its seed set; max_tokens: how many of its ids, at most,
    become text; stop: texts before which it ends; trace: whether to tell of the commits."""

    prompt: np.ndarray
    generation: GenerationConfig
    steering: tuple[SteeringConfig, ...]
    max_tokens: int
    stop: tuple[str, ...]
    trace: bool


def read_settings(
    values: Mapping[str, Any],
    prompt: str | Sequence[int],
    bundle: Bundle,
    *,
    limit: int | None = None,
    prompt_name: str = "prompt",
    always: Sequence[SteeringConfig] = (),
) -> GenerationRequest:
    """Checks `values` (names among `NAMES`; None stands for the default) and the prompt against the model.

    limit: of max_tokens. prompt_name: what the prompt's field is called. always: steering besides the request's own.
    Raises `BadField`.
    """
    given = {name: value for name, value in values.items() if value is not None}
    ids = _prompt_ids(prompt, bundle, prompt_name)
    max_tokens, canvas = _lengths(given.get("max_tokens"), len(ids), bundle, limit, prompt_name)
    seed = whole("seed", given["seed"]) if "seed" in given else secrets.randbits(32)
    numbers: dict[str, Any] = {name: number(name, given[name]) for name in _NUMBERS if name in given}
    steps = whole("steps", given["steps"]) if "steps" in given else None
    try:
        generation = GenerationConfig(
            max_new_tokens=canvas, steps=steps, seed=seed, use_entropy_sampling="temperature" not in given, **numbers
        )
        generation.check(bundle.config, ids.tolist())
    except UserError as error:  # its first word is the field
        name = str(error).split(" ", 1)[0]
        raise BadField(str(error), name if name in NAMES else prompt_name) from None
    steering = _steering(given.get("steering"), bundle, always)
    return GenerationRequest(
        ids, generation, steering, max_tokens, _stops(given.get("stop")), truth("trace", given.get("trace"))
    )


_NUMBERS = ("temperature", "top_p", "repetition_penalty", "cfg_scale")


def shown(value: Any) -> str:
    """`value` as JSON, cut to a sentence's size."""
    try:
        text = json.dumps(value)
    except ValueError:
        return "a number of thousands of digits"  # Python does not write it
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadField(f"{name} is {shown(value)}, but it must be a whole number.", name)
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadField(f"{name} is {shown(value)}, but it must be a number.", name)
    try:
        return float(value)
    except OverflowError:
        raise BadField(f"{name} is too large a number.", name) from None


def truth(name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadField(f"{name} is {shown(value)}, but it must be true or false.", name)
    return bool(value)


def _prompt_ids(prompt: str | Sequence[int], bundle: Bundle, name: str) -> np.ndarray:
    context = bundle.config.block_size
    try:
        ids = bundle.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if len(ids) > context:
            raise BadField(
                f"{name} has {len(ids)} tokens, more than the model's context of {context}: shorten it.",
                name,
                "context_length_exceeded",
            )
        return encode(bundle, ids, name)
    except BadField:
        raise
    except UserError as error:
        raise BadField(str(error), name) from None


def _lengths(asked: Any, prompt: int, bundle: Bundle, limit: int | None, prompt_name: str) -> tuple[int, int]:
    """max_tokens, and the canvas of whole blocks for it. Without a number: what fits, up to 128 tokens."""
    size, context = bundle.config.diff_block_size, bundle.config.block_size
    if asked is None:
        room = GenerationConfig.default_length(bundle.config, prompt)
        max_tokens = room if limit is None else min(room, limit)
    else:
        max_tokens = whole("max_tokens", asked)
        if max_tokens < 1:
            raise BadField(f"max_tokens is {max_tokens}, but it must be at least 1.", "max_tokens")
        if limit is not None and max_tokens > limit:
            raise BadField(f"max_tokens is {shown(max_tokens)}, but at most {limit} are allowed here.", "max_tokens")
    canvas = -(-max_tokens // size) * size
    if prompt + canvas > context:
        raise BadField(
            f"{prompt_name} has {prompt} tokens and the text {shown(canvas)} (whole blocks of {size}), but the "
            f"model's context is {context}: shorten one of them.",
            prompt_name,
            "context_length_exceeded",
        )
    return max_tokens, canvas


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP for stop in stops)
    ):
        raise BadField(
            f"stop is {shown(value)}, but it must be a text or a list of up to {_MOST_STOPS}, none empty or over "
            f"{_LONGEST_STOP} characters.",
            "stop",
        )
    return tuple(stops)


def _steering(value: Any, bundle: Bundle, always: Sequence[SteeringConfig]) -> tuple[SteeringConfig, ...]:
    try:
        steering = (*always, *(() if value is None else from_json(value, bundle)))
        clamp_plan(steering)
        return steering
    except UserError as error:
        raise BadField(str(error), "steering") from None

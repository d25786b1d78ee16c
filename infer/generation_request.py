"""One generation request in JSON, as the server and the batch file take it, validated against the model."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.generation import Prompt, effective_config
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.infer.text_stream import TextWriter
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import Resolved, merge_clamps
from steerling_jax.steering.resolve import configs_of, resolve_rules
from steerling_jax.steering.rule_syntax import parse_json

# Fields with the names and meaning of `GenerationConfig`, which validates them.
_CONFIG_FIELDS = ("steps", "temperature", "top_p", "top_k", "repetition_penalty", "cfg_scale")
FIELDS = ("max_tokens", *_CONFIG_FIELDS, "seed", "stop", "steering", "trace")
# Every token is compared with every stop text, so both are limited.
_MAX_STOPS, _MAX_STOP_LENGTH = 4, 256


class InvalidField(UserError):
    """A request's field with an invalid value. code: OpenAI's code for the error, where there is one."""

    def __init__(self, message: str, field: str, code: str | None = None):
        super().__init__(message, field)
        self.code = code


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request.

    prompt: token ids, settings (the seed set) and steering. stop: texts that end the text, which they are not part of.
    trace: whether the result contains the commits.
    """

    prompt: Prompt
    stop: tuple[str, ...]
    trace: bool

    def text_writer(self, bundle: Bundle) -> TextWriter:
        """A writer for the text of this request."""
        config, prompt_length = self.prompt.config, len(self.prompt.text_or_ids)
        canvas = config.canvas_length(bundle.config)
        return TextWriter(bundle.tokenizer, bundle.config, prompt_length, canvas, config.max_new_tokens, self.stop)


def parse_generation_request(
    values: Mapping[str, Any],
    prompt: str | Sequence[int],
    bundle: Bundle,
    *,
    max_tokens_limit: int | None = None,
    prompt_field: str = "prompt",
    steering: Sequence[Resolved] = (),
) -> GenerationRequest:
    """Validates `values`, whose names are among `FIELDS` (None means the default), and encodes the prompt.

    prompt_field: the name of the prompt's field in errors. steering: applied to all requests, before the request's own.
    Raises `InvalidField`.
    """
    given = {name: value for name, value in values.items() if value is not None}
    ids = _encode_prompt(prompt, bundle, prompt_field)
    max_tokens = _max_tokens(given.get("max_tokens"), len(ids), bundle, max_tokens_limit, prompt_field)
    settings = {name: given[name] for name in _CONFIG_FIELDS if name in given}
    if "temperature" in given:
        settings["use_entropy_sampling"] = False
    try:
        config = GenerationConfig(max_new_tokens=max_tokens, seed=given.get("seed", secrets.randbits(32)), **settings)
        config = effective_config(bundle, config, len(ids))
        config.check(bundle.config, ids.tolist())
    except UserError as error:
        raise InvalidField(str(error), error.field if error.field in FIELDS else prompt_field) from None
    configs = _steering(given.get("steering"), bundle, steering)
    return GenerationRequest(
        Prompt(ids.tolist(), config, configs or None),
        _stop_texts(given.get("stop")),
        boolean("trace", given.get("trace")),
    )


def shown(value: Any) -> str:
    """`value` as JSON, shortened for an error message."""
    try:
        text = json.dumps(value)
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to convert more than 4,300 digits
    return text if len(text) <= 60 else f"{text[:57]}..."


def boolean(name: str, value: Any) -> bool:
    """A field that is true, false or absent (None). Raises `InvalidField`."""
    if value is not None and not isinstance(value, bool):
        raise InvalidField(f"{name} is {shown(value)}, but it must be true or false.", name)
    return bool(value)


def _encode_prompt(prompt: str | Sequence[int], bundle: Bundle, field: str) -> np.ndarray:
    context = bundle.config.context_length
    try:
        ids = prompt
        if isinstance(prompt, str):
            ids = [*(bundle.tokenizer.prefix if prompt else ()), *bundle.tokenizer.encode(prompt)]
        # `encode` rejects this too, but only this error has a code in OpenAI's protocol.
        if len(ids) > context:
            raise InvalidField(
                f"{field} has {len(ids)} tokens, more than the model's context of {context}: shorten it.",
                field,
                "context_length_exceeded",
            )
        return encode(bundle, ids, field)
    except InvalidField:
        raise
    except UserError as error:
        raise InvalidField(str(error), field) from None


def _max_tokens(value: Any, prompt_length: int, bundle: Bundle, limit: int | None, prompt_field: str) -> int:
    """The most tokens of the text. The default is what fits in the context, up to 128."""
    block = bundle.config.diff_block_size if isinstance(bundle.config, ModelConfig) else 1
    context = bundle.config.context_length
    if value is None:
        default = GenerationConfig.default_length(bundle.config, prompt_length)
        max_tokens = default if limit is None else min(default, limit)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidField(f"max_tokens is {shown(value)}, but it must be a whole number.", "max_tokens")
    elif value < 1:
        raise InvalidField(f"max_tokens is {shown(value)}, but it must be at least 1.", "max_tokens")
    elif limit is not None and value > limit:
        raise InvalidField(f"max_tokens is {shown(value)}, but at most {limit} are allowed here.", "max_tokens")
    else:
        max_tokens = value
    canvas = -(-max_tokens // block) * block
    if prompt_length + canvas > context:
        blocks = f" (whole blocks of {block})" if block > 1 else ""
        raise InvalidField(
            f"{prompt_field} has {prompt_length} tokens and the text {shown(canvas)}{blocks}, but the model's context "
            f"is {context}: shorten one of them.",
            prompt_field,
            "context_length_exceeded",
        )
    return max_tokens


def _stop_texts(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops)
    ):
        raise InvalidField(
            f"stop is {shown(value)}, but it must be a text or a list of up to {_MAX_STOPS}, none empty or over "
            f"{_MAX_STOP_LENGTH} characters.",
            "stop",
        )
    return tuple(stops)


def _steering(value: Any, bundle: Bundle, shared: Sequence[Resolved]) -> tuple[Resolved, ...]:
    if value is not None and not isinstance(bundle.config, ModelConfig) and bundle.features is None:
        raise InvalidField(
            "steering needs a model with concepts or features, and this one has none; leave it out.", "steering"
        )
    try:
        configs = (*shared, *(() if value is None else resolve_rules(parse_json(value), bundle)))
        # The request's clamps can contradict the shared ones. Found here, the error is this request's own; decoding
        # would report it for a batch of requests.
        merge_clamps(configs_of(configs))
        return configs
    except UserError as error:
        raise InvalidField(str(error), "steering") from None

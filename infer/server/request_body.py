"""Bodies of `/v1/completions` and `/v1/chat/completions`, parsed and validated.

They have OpenAI's fields and the extensions of `generation_request.FIELDS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError
from steerling_jax.infer.generation_request import (
    FIELDS,
    GenerationRequest,
    InvalidField,
    boolean,
    parse_generation_request,
    shown,
)
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.io.tokenizers.byte_table import ByteTable

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.steering.plan import Resolved

# OpenAI's fields that are not supported, with the values that change nothing and are therefore accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "metadata": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
# Names of end users and caches, which this server does not need. They are ignored.
_IGNORED_TEXTS = ("user", "safety_identifier", "prompt_cache_key")
# Fields of a message that clients send back from an answer, with the values that say nothing.
_NEUTRAL_IN_MESSAGES: dict[str, Any] = {"tool_calls": [], "annotations": []}
_ONE_TEXT = "this server writes one text a request; send another request for another text"
_REASONS = {"n": _ONE_TEXT, "best_of": _ONE_TEXT}
_COMMON = {*FIELDS, *_NEUTRAL, *_IGNORED_TEXTS, "model", "stream", "stream_options"}
_ALLOWED = {False: {*_COMMON, "prompt"}, True: {*_COMMON, "messages", "max_completion_tokens"}}  # by `chat`
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class CompletionRequest:
    """A validated body. chat: of which endpoint. include_usage: a stream ends with a chunk of token counts."""

    generation: GenerationRequest
    chat: bool
    stream: bool
    include_usage: bool


def parse_request(
    body: Mapping[str, Any],
    bundle: Bundle,
    model: str,
    *,
    chat: bool,
    max_tokens_limit: int | None = None,
    steering: Sequence[Resolved] = (),
) -> CompletionRequest:
    """Validates the body of an endpoint. model: its name here. steering: applied to all requests. Raises `ApiError`."""
    try:
        _check_fields(body, model, chat=chat)
        stream = boolean("stream", body.get("stream"))
        values = {name: body[name] for name in FIELDS if name in body}
        if chat and "max_completion_tokens" in body:
            values["max_tokens"] = body["max_completion_tokens"]
        name = "messages" if chat else "prompt"
        if name not in body:
            raise InvalidField(f"{name} is missing.", name)
        prompt = _chat_prompt(body[name], bundle) if chat else _prompt(body[name])
        generation = parse_generation_request(
            values, prompt, bundle, max_tokens_limit=max_tokens_limit, prompt_field=name, steering=steering
        )
        return CompletionRequest(generation, chat, stream, _include_usage(body.get("stream_options"), stream))
    except InvalidField as error:
        param, message = error.field, str(error)
        if param == "max_tokens" and "max_completion_tokens" in body:  # the error names the field that was sent
            param, message = "max_completion_tokens", message.replace(param, "max_completion_tokens")
        raise ApiError(400, message, param=param, code=error.code) from None


def _check_fields(body: Mapping[str, Any], model: str, *, chat: bool) -> None:
    allowed = _ALLOWED[chat]
    for name, value in body.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise InvalidField(f"There is no field {shown(name)} here; {hint}", name[:80], "unknown_parameter")
        if name in _NEUTRAL and not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            reason = _REASONS.get(name, f"only {shown(_NEUTRAL[name][0])}, which changes nothing, is supported")
            raise InvalidField(f"{name} is {shown(value)}, but {reason}.", name, "unsupported_value")
    for name in _IGNORED_TEXTS:
        if not isinstance(body.get(name, ""), str):
            raise InvalidField(f"{name} is {shown(body[name])}, but it must be a text.", name)
    requested = body.get("model", model)
    if requested != model:
        raise ApiError(
            404,
            f"There is no model {shown(requested)} here; this server has {shown(model)}.",
            param="model",
            code="model_not_found",
        )


def _same(value: Any, neutral: Any) -> bool:
    """Equality that tells true from 1, which are equal in Python."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _include_usage(options: Any, stream: bool) -> bool:
    if isinstance(options, dict):
        nothing = ("include_usage", "include_obfuscation")  # where they are false
        options = {name: value for name, value in options.items() if not (name in nothing and value in (None, False))}
    if options is None or options == {}:
        return False
    if not isinstance(options, dict) or set(options) - {"include_usage"} or not stream:
        raise InvalidField(
            f"stream_options is {shown(options)}, but it must be an object with include_usage alone, and stream true.",
            "stream_options",
        )
    return boolean("stream_options.include_usage", options.get("include_usage"))


def _prompt(value: Any) -> str | list[int]:
    """A text or a list of ids, or a list with one of these."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return value
    if isinstance(value, list) and all(isinstance(i, str | list) for i in value):
        raise InvalidField(f"prompt contains {len(value)} prompts, but {_ONE_TEXT}.", "prompt", "unsupported_value")
    raise InvalidField(f"prompt is {shown(value)}, but it must be a text or a list of token ids.", "prompt")


def _chat_prompt(value: Any, bundle: Bundle) -> Sequence[int]:
    """The ids of a conversation, through the tokenizer's chat template."""
    tokenizer = bundle.tokenizer
    if not isinstance(tokenizer, ByteTable) or not tokenizer.has_chat_template:
        raise ApiError(
            400,
            "This model has no chat template, since it was not trained for conversations: use /v1/completions.",
            code="chat_not_supported",
        )
    if not isinstance(value, list) or not value:
        raise InvalidField(f"messages is {shown(value)}, but it must be a list of at least one message.", "messages")
    messages = [_message(i, message) for i, message in enumerate(value)]
    try:
        return tokenizer.chat_prompt(messages)
    except UserError as error:
        raise InvalidField(str(error), "messages") from None


def _message(i: int, message: Any) -> dict[str, str]:
    where = f"messages[{i}]"
    if isinstance(message, dict):  # clients send answers back with their null and empty fields, such as `refusal`
        message = {
            name: value
            for name, value in message.items()
            if name == "content" or (value is not None and value != _NEUTRAL_IN_MESSAGES.get(name))
        }
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise InvalidField(f"{where} is {shown(message)}, but it must be an object with role and content.", where)
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise InvalidField(
            f"{where}.role is {shown(role)}, but it must be one of {', '.join(_ROLES)}.", f"{where}.role"
        )
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InvalidField(f"{where}.content is {shown(content)}, but it must be a text.", f"{where}.content")
    return {"role": role, "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)

"""Bodies of `/v1/completions` and `/v1/chat/completions`: OpenAI's fields and ours, to what is wanted."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.infer.settings import NAMES, BadField, GenerationRequest, read_settings, shown, truth

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.steering.config import SteeringConfig

# Fields of OpenAI's that are taken only at the values that change nothing here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "store": (False,), "tools": ([],),
}  # fmt: skip
_ONE_TEXT = "this server writes one text a request; ask again for another"
_WHY = {"n": _ONE_TEXT, "best_of": _ONE_TEXT}
_BOTH = {*NAMES, *_NEUTRAL, "model", "stream", "stream_options", "user"}
_FIELDS = {False: {*_BOTH, "prompt"}, True: {*_BOTH, "messages", "max_completion_tokens"}}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class CompletionRequest:
    """One request. include_usage: in a stream, the counts come in a chunk of their own at the end."""

    wanted: GenerationRequest
    chat: bool
    stream: bool
    include_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """The body's object. Raises `ApiError`."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON ({error}): send one JSON object.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON, but no object: send one JSON object.", code="invalid_json")
    return {name: item for name, item in value.items() if item is not None}


def read(
    body: Mapping[str, Any],
    bundle: Bundle,
    model: str,
    *,
    chat: bool,
    limit: int | None = None,
    always: Sequence[SteeringConfig] = (),
) -> CompletionRequest:
    """Checks a body for the endpoint. limit: of max_tokens; always: steering of all requests. Raises `ApiError`."""
    try:
        _check_fields(body, model, chat=chat)
        stream = truth("stream", body.get("stream"))
        values = {name: body[name] for name in NAMES if name in body}
        if chat and "max_completion_tokens" in body:
            values["max_tokens"] = body["max_completion_tokens"]
        name = "messages" if chat else "prompt"
        if name not in body:
            raise BadField(f"{name} is missing.", name)
        prompt = _chat_prompt(body[name], bundle) if chat else _prompt(body[name])
        wanted = read_settings(values, prompt, bundle, limit=limit, prompt_name=name, always=always)
        return CompletionRequest(wanted, chat, stream, _include_usage(body.get("stream_options"), stream))
    except BadField as error:
        param, sentence = error.param, str(error)
        if param == "max_tokens" and "max_completion_tokens" in body:  # the name that was used
            param, sentence = "max_completion_tokens", sentence.replace(param, "max_completion_tokens")
        raise ApiError(400, sentence, param=param, code=error.code) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _check_fields(body: Mapping[str, Any], model: str, *, chat: bool) -> None:
    for name, value in body.items():
        if name not in _FIELDS[chat]:
            near = difflib.get_close_matches(name, _FIELDS[chat], n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise BadField(f"There is no field {shown(name)} here; {hint}", name[:80], "unknown_parameter")
        same = (value == one and isinstance(value, bool) == isinstance(one, bool) for one in _NEUTRAL.get(name, ()))
        if name in _NEUTRAL and not any(same):
            why = _WHY.get(name, f"only {shown(_NEUTRAL[name][0])}, which changes nothing, is taken")
            raise BadField(f"{name} is {shown(value)}, but {why}.", name, "unsupported_value")
    if not isinstance(body.get("user", ""), str):
        raise BadField(f"user is {shown(body['user'])}, but it must be a text.", "user")
    asked = body.get("model", model)
    if asked != model:
        raise ApiError(
            404,
            f"There is no model {shown(asked)} here; this server has {shown(model)}.",
            param="model",
            code="model_not_found",
        )


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or set(options) - {"include_usage"} or not stream:
        raise BadField(
            f"stream_options is {shown(options)}, but it must be an object with include_usage alone, and stream true.",
            "stream_options",
        )
    return truth("stream_options.include_usage", options.get("include_usage"))


def _prompt(value: Any) -> str | list[int]:
    """A text or a list of ids, also as the only one of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return value
    if isinstance(value, list) and all(isinstance(i, str | list) for i in value):
        raise BadField(f"prompt holds {len(value)} prompts, but {_ONE_TEXT}.", "prompt", "unsupported_value")
    raise BadField(f"prompt is {shown(value)}, but it must be a text or a list of token ids.", "prompt")


def _chat_prompt(value: Any, bundle: Bundle) -> Sequence[int]:
    chat_prompt = getattr(bundle.tokenizer, "chat_prompt", None)
    if chat_prompt is None or bundle.config.eot_id is None:
        raise ApiError(
            400,
            "This model has no chat template, since it was not made for conversations: ask /v1/completions.",
            code="chat_not_supported",
        )
    if not isinstance(value, list) or not value:
        raise BadField(f"messages is {shown(value)}, but it must be a list of at least one message.", "messages")
    messages = [_message(i, message) for i, message in enumerate(value)]
    try:
        return chat_prompt(messages)
    except UserError as error:
        raise BadField(str(error), "messages") from None


def _message(i: int, message: Any) -> dict[str, str]:
    where = f"messages[{i}]"
    if isinstance(message, dict):  # an answer sent back has null fields
        message = {name: value for name, value in message.items() if value is not None or name == "content"}
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise BadField(f"{where} is {shown(message)}, but it must be an object with role and content.", where)
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise BadField(f"{where}.role is {shown(role)}, but it must be one of {', '.join(_ROLES)}.", f"{where}.role")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadField(f"{where}.content is {shown(content)}, but it must be a text.", f"{where}.content")
    return {"role": role, "content": content}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)

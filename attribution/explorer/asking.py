"""The bodies and query fields of the explorer's requests, parsed and validated."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerling_jax.attribution.explorer.texts import Text, text_id
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.infer.generation_request import FIELDS, InvalidField, parse_generation_request, shown
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.models.steerling.config import ModelConfig

PANELS = ("inputs", "concepts", "considered", "evidence")
KINDS = ("concepts", "cost", "influence", "index")
EXPORTS = ("html", "json", "graph")
EXPORTED_PARTS = ("inputs", "considered", "evidence")
_LONGEST_STATE = 8_000  # characters of an address's fragment
MOST_PINS = 8
_TEXT_FIELDS = ("prompt", "continuation", "random_direction", *(name for name in FIELDS if name != "trace"))
Span = tuple[int, int]


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The answer to an invalid request, which names the field."""
    return ApiError(400, message, param=param, code=code)


@dataclass(frozen=True)
class Focus:
    """What a tab looks at: a text, selected positions, a step, the open panels, and pinned selections."""

    text: str | None
    at: Span | None
    step: int | None
    panels: tuple[str, ...]
    pins: tuple[Span, ...]


def _check_names(body: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name in body:
        if name not in allowed:
            raise refuse(f"There is no field {shown(name)} here; {', '.join(allowed)} are.", name[:80], "unknown_field")


def parse_text(body: Mapping[str, Any], bundle: Bundle, fingerprint: str, limit: int | None) -> tuple[Text, Any]:
    """The text that a body asks for, and the ids of its `continuation` (None where the text is to be written)."""
    _check_names(body, _TEXT_FIELDS)
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise refuse("prompt is empty; write something to continue.", "prompt")
    values = {name: body[name] for name in FIELDS if name in body}
    try:
        request = parse_generation_request(values, prompt, bundle, max_tokens_limit=limit)
        continuation = _continuation(body, bundle)
    except InvalidField as error:
        raise refuse(str(error), error.field, error.code) from None
    made = request.prompt
    if continuation is not None:  # nothing is drawn, so the seed must not tell two readings of one text apart
        made = dataclasses.replace(made, config=GenerationConfig(max_new_tokens=len(continuation), seed=0))
    random = body.get("random_direction", False)
    if type(random) is not bool or (random and not made.steering):
        message = "random_direction is true or false, and needs steering, whose size the random direction has."
        raise refuse(message, "random_direction")
    text = Text(text_id(fingerprint, made, request.stop, continuation, random), made, request.stop, random)
    return text, continuation


def _continuation(body: Mapping[str, Any], bundle: Bundle) -> list[int] | None:
    value = body.get("continuation")
    if value is None:
        return None
    extra = [name for name in body if name not in ("prompt", "continuation")]
    if extra:
        raise InvalidField(f"A given text is not generated; leave out {', '.join(extra)}.", extra[0])
    if not isinstance(value, str) or not value:
        raise InvalidField("continuation is empty; give the text to explain.", "continuation")
    if not isinstance(bundle.config, ModelConfig):
        raise InvalidField("A given text can be explained in a diffusion model only.", "continuation")
    try:
        return encode(bundle, value, "The continuation").tolist()
    except UserError as error:
        raise InvalidField(str(error), "continuation") from None


def parse_focus(body: Mapping[str, Any]) -> Focus:
    _check_names(body, ("text", "at", "step", "panels", "pins"))
    text, step, panels, pins = body.get("text"), body.get("step"), body.get("panels", []), body.get("pins", [])
    if text is not None and not isinstance(text, str):
        raise refuse(f"text is {shown(text)}, but it must be the id of a text.", "text")
    if step is not None and (type(step) is not int or step < 0):
        raise refuse(f"step is {shown(step)}, but it must be a whole number from 0 on.", "step")
    if not isinstance(panels, list) or not all(panel in PANELS for panel in panels):
        raise refuse(f"panels is {shown(panels)}, but it must be a list of {', '.join(PANELS)}.", "panels")
    if not isinstance(pins, list) or len(pins) > MOST_PINS:
        raise refuse(f"pins must be a list of at most {MOST_PINS} selections.", "pins")
    at = None if body.get("at") is None else parse_span(body["at"], "at")
    return Focus(text, at, step, tuple(panels), tuple(parse_span(pin, "pins") for pin in pins))


def parse_span(value: Any, param: str) -> Span:
    """A selection `[start, end]` of positions, the end exclusive."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(place) is int for place in value)
        or not 0 <= value[0] < value[1] < 1 << 31
    ):
        raise refuse(f"{param} is {shown(value)}, but it must be [start, end] with start < end.", param)
    return value[0], value[1]


def parse_query_span(text: str | None) -> Span:
    """A selection in an address: `28` or `9-42`, the end exclusive."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text or "")
    if match is None:
        raise refuse(f"at is {shown(text)}, but it must be a position or START-END.", "at")
    start = int(match[1])
    return parse_span([start, start + 1 if match[2] is None else int(match[2])], "at")


def parse_query_number(name: str, text: str | None, largest: int, default: int | None = None) -> int | None:
    """A whole number in an address, from 0 to `largest`."""
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,9}", text) or int(text) > largest:
        raise refuse(f"{name} is {shown(text)}, but it must be a whole number from 0 to {largest}.", name)
    return int(text)


def parse_job(body: Mapping[str, Any]) -> tuple[str, str, Span | None]:
    """(kind, id of the text, selection) of a job that is asked for by itself; an index is of no text."""
    _check_names(body, ("kind", "text", "at"))
    kind, text = body.get("kind"), body.get("text")
    if kind not in KINDS:
        raise refuse(f"kind is {shown(kind)}, but it must be one of {', '.join(KINDS)}.", "kind")
    if kind == "index":
        return kind, "", None
    if not isinstance(text, str):
        raise refuse(f"text is {shown(text)}, but it must be the id of a text.", "text")
    at = None if body.get("at") is None else parse_span(body["at"], "at")
    if kind == "influence" and at is None:
        raise refuse("influence is of a selection; give at.", "at")
    return kind, text, at


def parse_export(body: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    """(id of the text, format, what goes with it, state of the page) of an export."""
    _check_names(body, ("text", "as", "with", "state"))
    text, kind, parts, state = body.get("text"), body.get("as"), body.get("with", []), body.get("state", "")
    if not isinstance(text, str):
        raise refuse(f"text is {shown(text)}, but it must be the id of a text.", "text")
    if kind not in EXPORTS:
        raise refuse(f"as is {shown(kind)}, but it must be one of {', '.join(EXPORTS)}.", "as")
    if not isinstance(parts, list) or not all(part in EXPORTED_PARTS for part in parts):
        raise refuse(f"with is {shown(parts)}, but it must be a list of {', '.join(EXPORTED_PARTS)}.", "with")
    if not isinstance(state, str) or len(state) > _LONGEST_STATE:
        raise refuse(f"state must be the fragment of an address, at most {_LONGEST_STATE} characters.", "state")
    return text, kind, tuple(parts), state

"""Steering as people write it: rules such as "amplify Regular expressions", validated without a model.

`rule_syntax` parses options, JSON and policy files into rules; `resolve` looks up the concepts that they name and makes
`SteeringConfig`s of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from steerling_jax.concepts.concept import HEADS, Head
from steerling_jax.errors import UserError, require
from steerling_jax.steering.composition import Composable
from steerling_jax.steering.config import MAX_STRENGTH

Action = Literal["amplify", "suppress", "clamp"]
Where = Literal["masks", "prompt", "all", "generated"]  # the last two for features
ACTIONS: tuple[Action, ...] = get_args(Action)
Positions = Literal["all", "generated"]  # where a feature is added: everywhere, or after the prompt
POSITIONS: tuple[Positions, ...] = get_args(Positions)
EPSILONS = ("published", "frozen")

_TARGETS = ("concept", "group")
_INJECTION = ("strength", "layer", "tokens", "raw", "where")
_FIELDS: dict[Action, tuple[str, ...]] = {
    "amplify": ("action", *_TARGETS, "concepts", "reason", *_INJECTION, "head"),
    "suppress": ("action", *_TARGETS, "reason", *_INJECTION, "words", "head"),
    "clamp": ("action", *_TARGETS, "reason", "value", "head", "at", "epsilon"),
}
_ALL_FIELDS = tuple(dict.fromkeys(name for names in _FIELDS.values() for name in names))


@dataclass(frozen=True, repr=False)
class SteeringRule(Composable):
    """Steer by a concept (a name, an id or `group:NAME`), by a group, by a concept together with its group, or by
    `concepts`, names with their weights in one direction.

    None means the action's default. Fields of amplify and suppress: strength; layer, the first one that is injected;
    tokens, after how many committed tokens the injection ends ("all": never); raw, whether the strength is a length
    instead of logits; where, at "masks" or at the "prompt" (a feature: at "all" positions, which is its default, or at
    "generated" ones). A rule that names a feature of an autoencoder, such as "feature:12", adds its direction to the
    block that the autoencoder reads; its strength is a multiple of the feature's largest latent, or with raw the factor
    of the direction. words (suppress): how strongly the tokens that the concept
    promotes are suppressed. head: of the concepts; a rule that amplifies or suppresses also finds the name of a
    discovered concept, and "discovered:12", under "known". Fields of clamp: value, the activation; at, the half-open
    range of positions, counted from the first token after the prompt; epsilon, see `SteeringConfig`. origin: the file
    and number of the rule, for labels and errors. option: the whole text `NAME=X` of a command-line option; where a
    concept has this name, the rule is about that concept, with the default strength.
    """

    action: Action
    concept: str = ""
    group: str = ""
    strength: float | None = None
    reason: str = ""
    origin: str = ""
    option: str = ""
    concepts: Mapping[str, float] | None = None
    layer: int | None = None
    tokens: int | Literal["all"] | None = None
    raw: bool | None = None
    where: Where = "masks"
    words: float | None = None
    value: float | None = None
    head: Head = "known"
    at: tuple[int, int] | None = None
    epsilon: Literal["published", "frozen"] = "published"

    def __repr__(self) -> str:
        given = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)[1:]}
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        listed = (f", {name}={value!r}" for name, value in given.items() if value != defaults[name])
        return f"SteeringRule({self.action!r}{''.join(listed)})"


@dataclass(frozen=True)
class ResponseRule(Composable):
    """Steer towards texts like `response`, see `steering.response`. strength: None for the default."""

    response: str
    strength: float | None = None


Rule = SteeringRule | ResponseRule


def make_rule(fields: Mapping[str, Any], origin: str) -> SteeringRule:
    """A rule from plain values. Raises `UserError` with a message that begins with `origin` and names the field."""
    for name in fields:
        check_name(name, _ALL_FIELDS, f"{origin}: {name!r} is not a field of a rule")
    action = fields.get("action")
    if action not in ACTIONS:
        given = "there is no action" if action is None else f"action is {action!r}"
        raise UserError(f"{origin}: {given}; give action = 'amplify', 'suppress' or 'clamp'.", "action")
    allowed = _FIELDS[cast(Action, action)]
    for name in fields:
        require(name in allowed, f"{origin}: {name} is not a field of {action}, which has {', '.join(allowed)}.", name)
    targets = ("concepts",) if "concepts" in fields else _TARGETS
    require(any(name in fields for name in targets), f"{origin}: there is no concept; give a concept or a group.")
    require(
        not ("concepts" in fields and any(name in fields for name in _TARGETS)),
        f"{origin}: concepts cannot be combined with concept or group; give concepts alone.",
    )
    values = {name: _VALIDATORS[name](value, name, origin) for name, value in fields.items() if name != "action"}
    require(action != "clamp" or values.get("value") is not None, f"{origin}: there is no value; give the activation.")
    return SteeringRule(action, **values, origin=origin)


def check_name(name: str, allowed: Collection[str], complaint: str) -> None:
    """Raises `UserError(complaint)` with the nearest allowed name, unless `name` is among the allowed ones."""
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names are {', '.join(allowed)}."
        raise UserError(f"{complaint}; {hint}")


def check_strength(value: Any, where: str, name: str = "strength") -> float:
    """A strength from a number or its text: finite and not negative."""
    number = _float(value)
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where}: the {name} is {value!r}; give a number that is not negative.", name)
    require(number <= MAX_STRENGTH, f"{where}: the {name} is {value!r}; give at most {MAX_STRENGTH:g}.", name)
    return number


def check_activation(value: Any, name: str, origin: str) -> float:
    """A clamp's activation or a concept's weight, from a number or its text: finite."""
    number = _float(value)
    if not math.isfinite(number) or abs(number) > MAX_STRENGTH:
        raise UserError(f"{origin}: the {name} is {value!r}; give a number, at most {MAX_STRENGTH:g}.", name)
    return number


def check_span(value: Any, name: str, origin: str) -> tuple[int, int]:
    """A half-open range of positions, [start, end]."""
    whole = isinstance(value, Sequence) and len(value) == 2 and all(type(one) is int for one in value)
    if not whole or not 0 <= value[0] < value[1]:
        raise UserError(f"{origin}: {name} is {value!r}; give a start, from 0, and a later end.", name)
    return value[0], value[1]


def _float(value: Any) -> float:
    """NaN where `value` is not a number. Booleans are not, although Python counts them as integers."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _strength(value: Any, name: str, origin: str) -> float | None:
    return None if value is None else check_strength(value, origin, name)


def _target(value: Any, name: str, origin: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{origin}: {name} is {value!r}; give a name{' or an id' if name == 'concept' else ''}.", name)
    return str(value)


def _weights(value: Any, name: str, origin: str) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{origin}: {name} is {value!r}; give names and their weights.", name)
    return {
        _target(one, "concept", origin): check_activation(weight, f"weight of {one!r}", origin)
        for one, weight in value.items()
    }


def _integer(minimum: int) -> Callable[[Any, str, str], int]:
    def check(value: Any, name: str, origin: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"{origin}: {name} is {value!r}; give a whole number, at least {minimum}.", name)
        return value

    return check


def _tokens(value: Any, name: str, origin: str) -> int | str:
    return value if value == "all" else _integer(1)(value, name, origin)


def _one_of(*choices: Any) -> Callable[[Any, str, str], Any]:
    def check(value: Any, name: str, origin: str) -> Any:
        # Booleans are compared by identity, since 1 == True.
        if not any(value is one or (isinstance(one, str) and value == one) for one in choices):
            raise UserError(f"{origin}: {name} is {value!r}; give one of {', '.join(map(repr, choices))}.", name)
        return value

    return check


def _text(value: Any, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{origin}: {name} is {value!r}; give a text.", name)
    return value


_VALIDATORS: dict[str, Callable[[Any, str, str], Any]] = {
    "concept": _target,
    "group": _target,
    "concepts": _weights,
    "reason": _text,
    "strength": _strength,
    "layer": _integer(0),
    "tokens": _tokens,
    "raw": _one_of(False, True),
    "where": _one_of(*get_args(Where)),
    "words": _strength,
    "value": check_activation,
    "head": _one_of(*HEADS),
    "at": check_span,
    "epsilon": _one_of(*EPSILONS),
}

"""Rules such as "amplify Regular expressions", as far as they can be read without a model.

Rules come from options, from JSON and from policy files; all of them are made and checked here.
`steering_by_name` makes `SteeringConfig`s of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from steerling_jax.concepts.catalogue import HEADS, Head
from steerling_jax.errors import UserError, require
from steerling_jax.steering.config import MOST

Action = Literal["amplify", "suppress", "clamp"]
ACTIONS: tuple[Action, ...] = get_args(Action)
EPSILONS = ("published", "frozen")

# The presets' own: in logit units for `amplify`, the raw length of what is taken away for `suppress`.
STRENGTHS: dict[str, float] = {"amplify": 8.0, "suppress": 7.0}
_TARGETS = ("concept", "group")
_INJECTION = ("strength", "layer", "tokens", "raw", "where")
_FIELDS: dict[Action, tuple[str, ...]] = {
    "amplify": ("action", *_TARGETS, "concepts", "reason", *_INJECTION),
    "suppress": ("action", *_TARGETS, "reason", *_INJECTION, "words"),
    "clamp": ("action", *_TARGETS, "reason", "value", "head", "at", "epsilon"),
}
_ALL_FIELDS = tuple(dict.fromkeys(name for names in _FIELDS.values() for name in names))
_CLAMPING: dict[str, Head] = {"clamp": "known", "clamp_discovered": "discovered"}  # JSON's names
JSON_NAMES = ("amplify", "suppress", *_CLAMPING, "clamp_at", "epsilon", "rules")


@dataclass(frozen=True)
class SteeringRule:
    """Steer by a concept (a name, an id or `group:NAME`), by a group, by a concept together with its group, or by
    `concepts`, names with their weights in one direction.

    None stands for the action's own. strength: of amplify and suppress. layer: the first to be injected; tokens: that
    are written before the injection ends, "all" for never; raw: the strength is a length, not logits; where: at
    "masks" or at the "prompt". words: how strongly suppress holds down what a concept promotes. value: of a clamp;
    head, at (half-open, from the first token after the prompt) and epsilon: see `SteeringConfig`. origin: where the
    rule stands, for labels and errors.
    """

    action: Action
    concept: str = ""
    group: str = ""
    strength: float | None = None
    reason: str = ""
    origin: str = ""
    concepts: Mapping[str, float] | None = None
    layer: int | None = None
    tokens: int | Literal["all"] | None = None
    raw: bool | None = None
    where: Literal["masks", "prompt"] = "masks"
    words: float | None = None
    value: float | None = None
    head: Head = "known"
    at: tuple[int, int] | None = None
    epsilon: Literal["published", "frozen"] = "published"


def make_rule(fields: Mapping[str, Any], origin: str) -> SteeringRule:
    """A rule from plain values. Raises `UserError` that begins with `origin` and names the field."""
    for name in fields:
        check_name(name, _ALL_FIELDS, f"{origin}: {name!r} is not a field of a rule")
    action = fields.get("action")
    if action not in ACTIONS:
        given = "there is no action" if action is None else f"action is {action!r}"
        raise UserError(f"{origin}: {given}; give action = 'amplify', 'suppress' or 'clamp'.")
    allowed = _FIELDS[cast(Action, action)]
    for name in fields:
        require(name in allowed, f"{origin}: {name} is no field of {action}; it has {', '.join(allowed)}.")
    targets = ("concepts",) if "concepts" in fields else _TARGETS
    require(any(name in fields for name in targets), f"{origin}: there is no concept; give a concept or a group.")
    require(
        not ("concepts" in fields and any(name in fields for name in _TARGETS)),
        f"{origin}: concepts, with weights, stands alone; leave out concept and group.",
    )
    values = {name: _CHECKS[name](value, name, origin) for name, value in fields.items() if name != "action"}
    require(action != "clamp" or values.get("value") is not None, f"{origin}: there is no value; give the activation.")
    return SteeringRule(action, **values, origin=origin)


def parse_policy(document: Mapping[str, Any], source: str) -> tuple[SteeringRule, ...]:
    """The rules of a policy, `{"rule": [{…}, …]}`; `source` is what errors and labels call it."""
    for name in document:
        check_name(name, ("rule",), f"{source}: {name!r} is not part of a policy, which is a list of [[rule]]")
    rules = document.get("rule")
    if not isinstance(rules, list) or not rules:
        raise UserError(f"{source}: there is no rule; give at least one [[rule]].")
    return tuple(_numbered(rules, source))


def parse_rules(values: Mapping[str, Any], source: str = "steering") -> tuple[SteeringRule, ...]:
    """Rules from JSON, each part optional: `{"amplify": {"NAME": 8}, "suppress": ["NAME"], "clamp": {"NAME": 1},
    "clamp_discovered": {"12": 0}, "clamp_at": [0, 16], "epsilon": "frozen", "rules": [{…}]}`.

    A null strength, or a list in place of the object, means the action's own strength.
    """
    for name in values:
        check_name(name, JSON_NAMES, f"{source}: {name!r} is not a kind of steering")
    found: list[SteeringRule] = []
    for name in ("amplify", "suppress"):
        wanted = values.get(name) or {}
        for concept, strength in _pairs(
            {str(n): None for n in wanted} if isinstance(wanted, list) else wanted, name, source
        ):
            fields = {"action": name, "concept": concept, "strength": strength}
            found.append(dataclasses.replace(make_rule(fields, f"{source}, {name} {concept!r}"), origin=""))
    how = {
        name: values[key] for name, key in (("at", "clamp_at"), ("epsilon", "epsilon")) if values.get(key) is not None
    }
    for name, head in _CLAMPING.items():
        for concept, value in _pairs(values.get(name) or {}, name, source):
            fields = {"action": "clamp", "concept": concept, "value": value, "head": head} | how
            found.append(dataclasses.replace(make_rule(fields, f"{source}, {name} {concept!r}"), origin=""))
    clamps = any(values.get(name) for name in _CLAMPING)
    require(clamps or not how, f"{source}: clamp_at and epsilon need clamp or clamp_discovered; give both.")
    rules = values.get("rules") or []
    if not isinstance(rules, list):
        raise UserError(f"{source}: rules is {rules!r}; give a list of rules.")
    return (*found, *_numbered(rules, source))


def parse_option(option: str, text: str) -> SteeringRule:
    """A rule from the option amplify or suppress, `NAME` or `NAME=8`, or clamp or clamp-discovered, `NAME=1`."""
    head = _CLAMPING.get(option.replace("-", "_"))
    name, equals, number = text.rpartition("=")
    name, value = (name.strip(), number.strip()) if equals else (text.strip(), None)
    where = f"--{option} {text!r}"
    if head is not None:
        require(bool(name and value), f"{where} does not set a concept; give NAME=1 (0 is off).")
        return SteeringRule("clamp", name, value=_number(value, "value", where), head=head)
    require(bool(name), f"{where} names no concept; give NAME or NAME={STRENGTHS.get(option, 1):g}.")
    return SteeringRule(cast(Action, option), name, strength=None if value is None else check_strength(value, where))


def parse_span(text: str, option: str) -> tuple[int, int]:
    """`START:END`, positions after the prompt."""
    try:
        start, end = (int(part) for part in text.split(":"))
    except ValueError:
        raise UserError(f"{option} is {text!r}; give START:END, as in 0:16, counted from the prompt's end.") from None
    return _span([start, end], "at", option)


def check_strength(value: Any, where: str, name: str = "strength") -> float:
    """A strength from a number or its text: finite and not negative."""
    number = _float(value)
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where}: the {name} is {value!r}; give a number that is not negative.")
    require(number <= MOST, f"{where}: the {name} is {value!r}; give at most {MOST:g}.")
    return number


def check_name(name: str, known: Collection[str], complaint: str) -> None:
    """Raises `UserError(complaint)` with what may have been meant, where `name` is not among the known ones."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise UserError(f"{complaint}; {hint}")


def _pairs(wanted: Any, name: str, source: str) -> Collection[tuple[str, Any]]:
    if not isinstance(wanted, Mapping):
        raise UserError(f"{source}: {name} is {wanted!r}; give an object of names and numbers.")
    return wanted.items()


def _numbered(rules: list[Any], source: str) -> list[SteeringRule]:
    found = []
    for number, fields in enumerate(rules, start=1):
        origin = f"{source}, rule {number}"
        if not isinstance(fields, Mapping):
            raise UserError(f"{origin} is {fields!r}; give an action and a concept.")
        found.append(make_rule(fields, origin))
    return found


def _float(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _number(value: Any, name: str, origin: str) -> float:
    number = _float(value)
    if not math.isfinite(number) or abs(number) > MOST:
        raise UserError(f"{origin}: the {name} is {value!r}; give a number, at most {MOST:g}.")
    return number


def _strength(value: Any, name: str, origin: str) -> float | None:
    return None if value is None else check_strength(value, origin, name)


def _target(value: Any, name: str, origin: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{origin}: {name} is {value!r}; give a name{' or an id' if name == 'concept' else ''}.")
    return str(value)


def _weights(value: Any, name: str, origin: str) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{origin}: {name} is {value!r}; give names and their weights.")
    return {
        _target(one, "concept", origin): _number(weight, f"weight of {one!r}", origin) for one, weight in value.items()
    }


def _whole(least: int) -> Callable[[Any, str, str], int]:
    def check(value: Any, name: str, origin: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{origin}: {name} is {value!r}; give a whole number, at least {least}.")
        return value

    return check


def _tokens(value: Any, name: str, origin: str) -> int | str:
    return value if value == "all" else _whole(1)(value, name, origin)


def _one_of(*choices: Any) -> Callable[[Any, str, str], Any]:
    def check(value: Any, name: str, origin: str) -> Any:
        if not any(value is one or (isinstance(one, str) and value == one) for one in choices):
            raise UserError(f"{origin}: {name} is {value!r}; give one of {', '.join(map(repr, choices))}.")
        return value

    return check


def _text(value: Any, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{origin}: {name} is {value!r}; give a text.")
    return value


def _span(value: Any, name: str, origin: str) -> tuple[int, int]:
    whole = isinstance(value, Sequence) and len(value) == 2 and all(type(one) is int for one in value)
    if not whole or not 0 <= value[0] < value[1]:
        raise UserError(f"{origin}: {name} is {value!r}; give a start and a later end, from 0.")
    return value[0], value[1]


_CHECKS: dict[str, Callable[[Any, str, str], Any]] = {
    "concept": _target, "group": _target, "concepts": _weights, "reason": _text, "strength": _strength,
    "layer": _whole(0), "tokens": _tokens, "raw": _one_of(False, True), "where": _one_of("masks", "prompt"),
    "words": _strength, "value": _number, "head": _one_of(*HEADS), "at": _span, "epsilon": _one_of(*EPSILONS),
}  # fmt: skip

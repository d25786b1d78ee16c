"""Parsers of steering rules: command-line options, JSON objects and policy documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

from steerling_jax.concepts.concept import Head
from steerling_jax.errors import UserError, require
from steerling_jax.steering.rules import (
    Action,
    ResponseRule,
    Rule,
    SteeringRule,
    check_activation,
    check_name,
    check_span,
    check_strength,
    make_rule,
)

_CLAMPS: dict[str, Head] = {"clamp": "known", "clamp_discovered": "discovered"}  # JSON's names
_JSON_NAMES = ("amplify", "suppress", *_CLAMPS, "clamp_at", "epsilon", "rules", "like_response", "like_strength")
_MAX_RULES = 64  # in JSON: each one is looked up and named in the trace


def parse_policy(document: Mapping[str, Any], source: str) -> tuple[SteeringRule, ...]:
    """The rules of a policy, `{"rule": [{…}, …]}`; `source` names it in errors and labels."""
    for name in document:
        check_name(name, ("rule",), f"{source}: {name!r} is not part of a policy, which is a list of [[rule]]")
    rules = document.get("rule")
    if not isinstance(rules, list) or not rules:
        raise UserError(f"{source}: there is no rule; give at least one [[rule]].")
    return tuple(_numbered(rules, source))


def parse_json(values: Any) -> tuple[Rule, ...]:
    """Rules from a JSON object, each part optional: `{"amplify": {"NAME": 8}, "suppress": ["NAME"], "clamp": {"NAME":
    1}, "clamp_discovered": {"12": 0}, "clamp_at": [0, 16], "epsilon": "frozen", "rules": [{…}], "like_response":
    "TEXT", "like_strength": 8}`.

    A null strength, or a list in place of the object, means the action's default strength. Raises `UserError`.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"steering is {values!r}; give an object with {', '.join(_JSON_NAMES)}.")
    for name in values:
        check_name(name, _JSON_NAMES, f"steering: {name!r} is not a kind of steering")
    rules = values.get("rules") or []
    if not isinstance(rules, list):
        raise UserError(f"steering: rules is {rules!r}; give a list of rules.", "rules")
    parsed = (*_json_injections(values), *_json_clamps(values), *_numbered(rules, "steering"))
    require(len(parsed) <= _MAX_RULES, f"steering has {len(parsed)} rules; give at most {_MAX_RULES}.")
    return (*parsed, *_json_response(values))


def parse_option(option: str, text: str) -> SteeringRule:
    """A rule from `--amplify` or `--suppress`, `NAME` or `NAME=8`, or from `--clamp` or `--clamp-discovered`, `NAME=1`.

    option: without its dashes. A concept's name can contain "=" itself, and only the catalogue knows: the rule has the
    name and the number after the last "=", and the whole text as `option`, which `resolve_rules` looks up first.
    """
    head = _CLAMPS.get(option.replace("-", "_"))
    name, equals, number = text.rpartition("=")
    name, value = (name.strip(), number.strip()) if equals else (text.strip(), None)
    where = f"--{option} {text!r}"
    whole = text if equals else ""
    if head is not None:
        require(bool(name and value), f"{where} does not set a concept; give NAME=1 (0 is off).")
        value = check_activation(value, "value", where)
        return SteeringRule("clamp", name, value=value, head=head, option=whole)
    require(bool(name), f"{where} names no concept; give NAME or NAME=STRENGTH.")
    try:
        strength = None if value is None else check_strength(value, where)
    except UserError:
        name, strength = text, None  # only the whole text can be a name; `resolve_rules` raises if it is not
    return SteeringRule(cast(Action, option), name, strength=strength, option=whole)


def parse_span(text: str, option: str) -> tuple[int, int]:
    """`START:END`, a half-open range of positions after the prompt."""
    try:
        start, end = (int(part) for part in text.split(":"))
    except ValueError:
        raise UserError(f"{option} is {text!r}; give START:END, as in 0:16, counted from the prompt's end.") from None
    return check_span([start, end], "at", option)


def _json_injections(values: Mapping[str, Any]) -> Iterator[SteeringRule]:
    for name in ("amplify", "suppress"):
        targets = values.get(name) or {}
        if isinstance(targets, list):
            targets = {str(concept): None for concept in targets}
        for concept, strength in _object(targets, name).items():
            yield _json_rule({"action": name, "concept": concept, "strength": strength}, name)


def _json_clamps(values: Mapping[str, Any]) -> Iterator[SteeringRule]:
    shared = {
        field: values[name]
        for field, name in (("at", "clamp_at"), ("epsilon", "epsilon"))
        if values.get(name) is not None
    }
    require(
        not shared or any(values.get(name) for name in _CLAMPS),
        "steering: clamp_at and epsilon need clamp or clamp_discovered; give both.",
    )
    for name, head in _CLAMPS.items():
        for concept, value in _object(values.get(name) or {}, name).items():
            yield _json_rule({"action": "clamp", "concept": concept, "value": value, "head": head} | shared, name)


def _json_rule(fields: Mapping[str, Any], name: str) -> SteeringRule:
    """The origin serves errors only: labels of such rules do not repeat it."""
    return dataclasses.replace(make_rule(fields, f"steering, {name} {fields['concept']!r}"), origin="")


def _json_response(values: Mapping[str, Any]) -> Iterator[ResponseRule]:
    response, strength = values.get("like_response"), values.get("like_strength")
    if response is None:
        require(strength is None, "steering: like_strength needs like_response; give both.")
        return
    if not isinstance(response, str):
        raise UserError(f"steering: like_response is {response!r}; give a text.", "like_response")
    yield ResponseRule(response, None if strength is None else check_strength(strength, "steering, like_strength"))


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"steering: {name} is {value!r}; give an object of names and numbers.", name)
    return value


def _numbered(rules: list[Any], source: str) -> Iterator[SteeringRule]:
    for number, fields in enumerate(rules, start=1):
        origin = f"{source}, rule {number}"
        if not isinstance(fields, Mapping):
            raise UserError(f"{origin} is {fields!r}; give an action and a concept.")
        yield make_rule(fields, origin)

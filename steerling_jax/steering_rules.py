"""Steering by name: rules such as "amplify Regular expressions" to the `SteeringConfig` that does it.

Rules come from options, from JSON and from policy files; all of them are made and checked here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from steerling_jax.catalogue import Catalogue
from steerling_jax.config import ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.steering_config import SteeringConfig

Action = Literal["amplify", "suppress"]
ACTIONS: tuple[Action, ...] = get_args(Action)

# The presets' own: in logit units for `amplify`, the raw length of what is taken away for `suppress`.
STRENGTHS: dict[Action, float] = {"amplify": 8.0, "suppress": 7.0}
_TARGETS = ("concept", "group")
_FIELDS = ("action", *_TARGETS, "strength", "reason")
_PRESET_LAYER = 8


@dataclass(frozen=True)
class Rule:
    """Steer by a concept (a name, an id or `group:NAME`), by a group, or by a concept together with its group.

    strength: None for the action's own. origin: where the rule stands, for labels and errors.
    """

    action: Action
    concept: str = ""
    group: str = ""
    strength: float | None = None
    reason: str = ""
    origin: str = ""


def make_rule(fields: Mapping[str, Any], origin: str) -> Rule:
    """A rule from plain values. Raises `UserError` that begins with `origin` and names the field."""
    for name in fields:
        check_name(name, _FIELDS, f"{origin}: {name!r} is not a field of a rule")
    action = fields.get("action")
    if action not in ACTIONS:
        given = "there is no action" if action is None else f"action is {action!r}"
        raise UserError(f"{origin}: {given}; give action = 'amplify' or 'suppress'.")
    targets = {name: _target(fields[name], name, origin) for name in _TARGETS if name in fields}
    if not targets:
        raise UserError(f"{origin}: there is no concept; give a concept or a group.")
    strength = fields.get("strength")
    reason = fields.get("reason", "")
    if not isinstance(reason, str):
        raise UserError(f"{origin}: reason is {reason!r}; give a text.")
    strength = None if strength is None else check_strength(strength, origin)
    return Rule(cast(Action, action), **targets, strength=strength, reason=reason, origin=origin)


def parse_policy(document: Mapping[str, Any], source: str) -> tuple[Rule, ...]:
    """The rules of a policy, `{"rule": [{…}, …]}`; `source` is what errors and labels call it."""
    for name in document:
        check_name(name, ("rule",), f"{source}: {name!r} is not part of a policy, which is a list of [[rule]]")
    rules = document.get("rule")
    if not isinstance(rules, list) or not rules:
        raise UserError(f"{source}: there is no rule; give at least one [[rule]].")
    return tuple(_numbered(rules, source))


def parse_rules(values: Mapping[str, Any], source: str = "steering") -> tuple[Rule, ...]:
    """Rules from JSON: `{"amplify": {"NAME": 8}, "suppress": ["NAME"], "rules": [{…}]}`, each of them optional.

    A null strength, or a list in place of the object, means the action's own strength.
    """
    for name in values:
        check_name(name, (*ACTIONS, "rules"), f"{source}: {name!r} is not a kind of steering")
    found: list[Rule] = []
    for action in ACTIONS:
        wanted = values.get(action) or {}
        if isinstance(wanted, list):
            wanted = {str(name): None for name in wanted}
        if not isinstance(wanted, Mapping):
            raise UserError(f"{source}: {action} is {wanted!r}; give an object of names and strengths.")
        for name, strength in wanted.items():
            fields = {"action": action, "concept": name, "strength": strength}
            found.append(dataclasses.replace(make_rule(fields, f"{source}, {action} {name!r}"), origin=""))
    rules = values.get("rules") or []
    if not isinstance(rules, list):
        raise UserError(f"{source}: rules is {rules!r}; give a list of rules.")
    return (*found, *_numbered(rules, source))


def parse_option(action: Action, text: str) -> Rule:
    """A rule from `NAME` or `NAME=8`."""
    name, equals, number = text.rpartition("=")
    name, strength = (name.strip(), number.strip()) if equals else (text.strip(), None)
    option = f"--{action} {text!r}"
    if not name:
        raise UserError(f"{option} names no concept; give NAME or NAME={STRENGTHS[action]:g}.")
    return Rule(action, name, strength=None if strength is None else check_strength(strength, option))


def steering_of(rules: Sequence[Rule], catalogue: Catalogue, config: ModelConfig) -> tuple[SteeringConfig, ...]:
    """One `SteeringConfig` a rule. Raises `UserError` for unknown names, and for rules that contradict each other."""
    done: dict[tuple[int, ...], Rule] = {}
    found = []
    for rule in rules:
        try:
            focal = catalogue.resolve(rule.concept) if rule.concept else ()
            group = catalogue.resolve(f"group:{rule.group}") if rule.group else ()
        except UserError as error:
            raise UserError(f"{rule.origin}: {error}" if rule.origin else str(error)) from None
        ids = tuple(dict.fromkeys((*focal, *group)))
        earlier = done.setdefault(tuple(sorted(ids)), rule)
        if earlier.action != rule.action:
            one, other = (f"{r.origin or 'an option'} says {r.action}" for r in (earlier, rule))
            raise UserError(f"{_called(rule, catalogue, focal)}: {one}, and {other}; keep one of the two.")
        strength = STRENGTHS[rule.action] if rule.strength is None else rule.strength
        label = f"{rule.action} {_called(rule, catalogue, focal)} at {strength:g}"
        label = f"{rule.origin}: {label}" if rule.origin else label
        label = f"{label} ({rule.reason})" if rule.reason else label
        make = _amplified if rule.action == "amplify" else _suppressed
        found.append(dataclasses.replace(make(ids, focal or ids, strength, config), label=label))
    return tuple(found)


def _amplified(ids: tuple[int, ...], focal: tuple[int, ...], strength: float, config: ModelConfig) -> SteeringConfig:
    """The published preset, but for the layer in small models.

    The preset injects from layer 8, a quarter of the published model's 32. A model of 8 layers would be reached after
    its last one only, a smaller one never; so small models take half their layers, as steering does by default.
    """
    layer = min(_PRESET_LAYER, max(config.n_layers // 2, 1))
    return SteeringConfig.injection(ids, mai_lm_target=strength, inject_layer=layer)


def _suppressed(ids: tuple[int, ...], focal: tuple[int, ...], strength: float, config: ModelConfig) -> SteeringConfig:
    """The published preset at its own strength, 7. Words are held down in proportion to the strength, 20 at 7: left at
    20 they would decide everything at small strengths. Several focal concepts share them, so that a group's
    words are not all forbidden.
    """
    preset = SteeringConfig.injection_relu(ids[0], ids[1:], mai_lm_target=-strength)
    held = sum((preset.relu_logit_mask or {}).values()) * strength / STRENGTHS["suppress"]
    return dataclasses.replace(preset, relu_logit_mask={i: held / len(focal) for i in focal})


def check_strength(value: Any, where: str) -> float:
    """A strength from a number or its text: finite and not negative."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where}: the strength is {value!r}; give a number that is not negative.")
    return number


def check_name(name: str, known: Collection[str], complaint: str) -> None:
    """Raises `UserError(complaint)` with what may have been meant, where `name` is not among the known ones."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise UserError(f"{complaint}; {hint}")


def _numbered(rules: list[Any], source: str) -> list[Rule]:
    found = []
    for number, fields in enumerate(rules, start=1):
        origin = f"{source}, rule {number}"
        if not isinstance(fields, Mapping):
            raise UserError(f"{origin} is {fields!r}; give an action and a concept.")
        found.append(make_rule(fields, origin))
    return found


def _target(value: Any, name: str, origin: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{origin}: {name} is {value!r}; give a name{' or an id' if name == 'concept' else ''}.")
    return str(value)


def _called(rule: Rule, catalogue: Catalogue, focal: tuple[int, ...]) -> str:
    """What a label calls the rule's concepts: the catalogue's name for an id."""
    concept = catalogue.get(focal[0]).name if len(focal) == 1 else rule.concept
    group = f"group:{rule.group}" if rule.group else ""
    return " with ".join(part for part in (concept, group) if part)

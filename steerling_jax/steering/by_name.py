"""Rules about concepts with names, to the `SteeringConfig`s that do what they say.

Source of the presets: `SteeringConfig.injection` and `.injection_relu`; what differs from them is said below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import clamp_plan
from steerling_jax.steering.rules import STRENGTHS, SteeringRule

_PRESET_LAYER = 8
_WORDS = 20.0  # with which the preset holds words down, at its strength of 7


def steering_of(rules: Sequence[SteeringRule], catalogue: Catalogue, config: ModelConfig) -> tuple[SteeringConfig, ...]:
    """One `SteeringConfig` a rule. Raises `UserError` for unknown names, for rules that contradict each other, and for
    clamps that change nothing."""
    done: dict[tuple[int, ...], SteeringRule] = {}
    found = []
    for rule in rules:
        try:
            focal, group = _resolved(rule, catalogue)
        except UserError as error:
            raise UserError(f"{rule.origin}: {error}" if rule.origin else str(error)) from None
        ids = tuple(dict.fromkeys((*focal, *group)))
        called = _called(rule, catalogue, focal)
        if rule.action == "clamp":
            found.append(_clamped(rule, ids, called))
            continue
        earlier = done.setdefault(tuple(sorted(ids)), rule)
        if earlier.action != rule.action:
            one, other = (f"{r.origin or 'an option'} says {r.action}" for r in (earlier, rule))
            raise UserError(f"{called}: {one}, and {other}; keep one of the two.")
        make = _amplified if rule.action == "amplify" else _suppressed
        strength = STRENGTHS[rule.action] if rule.strength is None else rule.strength
        one = _as_told(rule, make(rule, ids, focal or ids, strength, config))
        found.append(dataclasses.replace(one, label=_label(rule, f"{rule.action} {called} at {strength:g}")))
    clamps = [rule for rule in rules if rule.action == "clamp"]
    require(
        not clamps or any(rule.head == "known" or rule.epsilon == "frozen" for rule in clamps),
        "Clamping discovered concepts alone changes nothing under the published epsilon, which fills the gap; give "
        "epsilon 'frozen'.",
    )
    require(
        not clamps or config.concept is None or config.concept.use_unknown or clamps[0].epsilon == "frozen",
        "This model has no discovered concepts, so clamping known ones changes nothing under the published epsilon; "
        "give epsilon 'frozen'.",
    )
    clamp_plan(found)
    return tuple(found)


def _resolved(rule: SteeringRule, catalogue: Catalogue) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the concepts that the rule names, and of its group."""
    names = (rule.concept,) if rule.concept else tuple(rule.concepts or ())
    focal = tuple(i for name in names for i in catalogue.resolve(name, rule.head))
    require(
        rule.concepts is None or len(focal) == len(names) == len(set(focal)),
        f"concepts are {', '.join(names)}, but a weight belongs to one concept; name each once.",
    )
    return focal, catalogue.resolve(f"group:{rule.group}", rule.head) if rule.group else ()


def _amplified(
    rule: SteeringRule, ids: tuple[int, ...], focal: tuple[int, ...], strength: float, config: ModelConfig
) -> SteeringConfig:
    """The published preset, but for the layer in small models.

    The preset injects from layer 8, a quarter of the published model's 32. A model of 8 layers would be reached after
    its last one only, a smaller one never; so small models take half their layers, as steering does by default.
    """
    layer = min(_PRESET_LAYER, max(config.n_layers // 2, 1))
    one = SteeringConfig.injection(ids, mai_lm_target=strength, inject_layer=layer)
    return one if rule.concepts is None else dataclasses.replace(one, weights=tuple(rule.concepts.values()))


def _suppressed(
    rule: SteeringRule, ids: tuple[int, ...], focal: tuple[int, ...], strength: float, config: ModelConfig
) -> SteeringConfig:
    """The published preset at its own strength, 7. Words are held down in proportion to the strength, 20 at 7, unless
    the rule says otherwise: left at 20 they would decide everything at small strengths. Several focal concepts share
    them, so that a group's words are not all forbidden.
    """
    held = _WORDS * strength / STRENGTHS["suppress"] if rule.words is None else rule.words
    one = SteeringConfig.injection_relu(ids[0], ids[1:], mai_lm_target=-strength)
    return dataclasses.replace(one, relu_logit_mask={i: held / len(focal) for i in focal})


def _as_told(rule: SteeringRule, one: SteeringConfig) -> SteeringConfig:
    """A preset with what the rule says of the injection in place of its own."""
    changes: dict = {"inject_layer": rule.layer} if rule.layer is not None else {}
    if rule.tokens is not None:
        changes["inject_alpha_schedule"] = "fixed" if rule.tokens == "all" else "hard_cutoff"
        changes["cutoff_tokens"] = one.cutoff_tokens if rule.tokens == "all" else rule.tokens
    if rule.raw is not None:
        changes["normalize_mai_lm_target"] = not rule.raw
    return dataclasses.replace(one, where=rule.where, **changes)


def _clamped(rule: SteeringRule, ids: tuple[int, ...], called: str) -> SteeringConfig:
    assert rule.value is not None
    kind = "" if rule.head == "known" else "discovered "
    values = dict.fromkeys(ids, rule.value)
    known, discovered = (values, None) if rule.head == "known" else (None, values)
    label = _label(rule, f"clamp {kind}{called} at {rule.value:g}")
    return SteeringConfig(
        intervene_known=known, intervene_unknown=discovered, clamp_offsets=rule.at, epsilon=rule.epsilon, label=label
    )


def _label(rule: SteeringRule, done: str) -> str:
    label = f"{rule.origin}: {done}" if rule.origin else done
    return f"{label} ({rule.reason})" if rule.reason else label


def _called(rule: SteeringRule, catalogue: Catalogue, focal: tuple[int, ...]) -> str:
    """What a label calls the rule's concepts: the catalogue's name for an id."""
    if rule.concepts is not None:
        names = (catalogue.get(i, rule.head).name for i in focal)
        return " + ".join(f"{weight:g} {name}" for name, weight in zip(names, rule.concepts.values()))
    concept = catalogue.get(focal[0], rule.head).name if len(focal) == 1 else rule.concept
    group = f"group:{rule.group}" if rule.group else ""
    return " with ".join(part for part in (concept, group) if part)

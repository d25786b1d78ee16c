"""Steering rules to `SteeringConfig`s and `FeatureSteering`s: the concepts and features that they name are looked up in
the model's catalogue.

Source of the presets: `SteeringConfig.injection` and `.injection_relu` of the published package; differences are
described where they are made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import KINDS, Head
from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.feature_rules import feature_steering, names_feature
from steerling_jax.steering.plan import Resolved, SteeringPlan, merge_clamps, prepare_steering
from steerling_jax.steering.response import DEFAULT_STRENGTH, response_steering
from steerling_jax.steering.rules import ResponseRule, Rule, SteeringRule, check_strength
from steerling_jax.steering.strengths import PRESET_STRENGTHS, default_strength

# How callers steer: by configurations, by rules with names of concepts (`sj.amplify`), or by a finished plan.
Steering = Resolved | Rule | Sequence[Resolved | Rule] | SteeringPlan

_PRESET_SUPPRESSION = 20.0  # of the promoted tokens' logits, at the preset's strength of 7


def resolve_rules(rules: Sequence[Rule], bundle: Bundle) -> tuple[Resolved, ...]:
    """One `SteeringConfig`, or of a feature `FeatureSteering`, a rule, in their order.

    Raises `UserError` for names that the model's catalogue does not have, for rules that contradict each other, for
    clamps that would change nothing, and where the model has no concepts.
    """
    if not rules:
        return ()
    config = bundle.config
    if bundle.features is None:
        if not isinstance(config, ModelConfig):
            raise UserError(
                "Steering by name needs a model with concepts, or features of an autoencoder of this one: give it with "
                "--autoencoder, or sj.with_features.",
                "steering",
            )
        require(config.concept is not None, "Steering needs a model with known concepts; this one has none.")
    actions: dict[tuple[str | int, ...], SteeringRule] = {}
    resolved = [
        response_steering(bundle, rule.response, DEFAULT_STRENGTH if rule.strength is None else rule.strength)
        if isinstance(rule, ResponseRule)
        else _resolve(rule, bundle, actions)
        for rule in rules
    ]
    clamps = [rule for rule in rules if isinstance(rule, SteeringRule) and rule.action == "clamp"]
    if clamps:
        _check_clamps(clamps, config)
    merge_clamps(configs_of(resolved))  # raises where clamps contradict each other
    return tuple(resolved)


def configs_of(resolved: Sequence[Resolved]) -> list[SteeringConfig]:
    """The steering by concepts among all."""
    return [one for one in resolved if isinstance(one, SteeringConfig)]


def resolve_steering(bundle: Bundle, steering: Steering | None) -> tuple[Resolved, ...]:
    """The configurations of a steering, with its rules resolved. Raises `UserError` as `resolve_rules` does, for values
    that are no steering, and for a plan, from which no configuration can be read."""
    if isinstance(steering, SteeringPlan):
        raise UserError("A SteeringPlan has no configurations; give SteeringConfigs or rules such as sj.amplify(...).")
    parts = () if steering is None else steering if isinstance(steering, Sequence) else (steering,)
    for one in parts:
        require(
            isinstance(one, Resolved | Rule),
            f"steering contains {one!r}; give a SteeringConfig, or a rule such as sj.amplify('Threads').",
            "steering",
        )
    rules = iter(resolve_rules([one for one in parts if not isinstance(one, Resolved)], bundle))
    return tuple(one if isinstance(one, Resolved) else next(rules) for one in parts)


def plan_steering(bundle: Bundle, steering: Steering | None) -> SteeringPlan:
    """The plan for this model; a `SteeringPlan` is returned as it is. Raises `UserError` for what the model lacks."""
    if isinstance(steering, SteeringPlan):
        return steering
    resolved = resolve_steering(bundle, steering)
    return prepare_steering(bundle.params, resolved, config=bundle.config, compute=bundle.compute)


def _resolve(rule: SteeringRule, bundle: Bundle, actions: dict[tuple[str | int, ...], SteeringRule]) -> Resolved:
    """One rule's steering. actions: the first rule that amplifies or suppresses each set of concepts, a head and its
    ids; updated."""
    catalogue, config = bundle.concepts, bundle.config
    if rule.action != "clamp" and any(catalogue.has_name(rule.option, head) for head in KINDS):
        rule = dataclasses.replace(rule, concept=rule.option, strength=None)
    if names_feature(rule, catalogue):
        return feature_steering(rule, bundle)
    require(
        rule.where in ("masks", "prompt"),
        f"{rule.origin or 'A rule'}: where is {rule.where!r}, which is for features; give 'masks' or 'prompt'.",
        "where",
    )
    if rule.action != "clamp":
        rule = _with_head(rule, catalogue)
    try:
        focal, group = _concept_ids(rule, catalogue)
    except UserError as error:
        raise _explained(error, rule, catalogue) from None
    ids = tuple(dict.fromkeys((*focal, *group)))
    name = _display_name(rule, catalogue, focal)
    if rule.action == "clamp":
        return _clamp(rule, ids, name)
    require(
        rule.layer is None or rule.layer <= config.n_layers,
        f"{rule.origin or 'A rule'}: layer is {rule.layer}, but the layers of this model are 1 to {config.n_layers}.",
        "layer",
    )
    # Amplifying and suppressing the same concepts would partly cancel out, which can only be a mistake.
    earlier = actions.setdefault((rule.head, *sorted(ids)), rule)
    if earlier.action != rule.action:
        one, other = (f"{r.origin or 'an option'} says {r.action}" for r in (earlier, rule))
        raise UserError(f"{name}: {one}, and {other}; keep one of the two.")
    strength = default_strength(bundle, rule.action, ids, rule.head) if rule.strength is None else rule.strength
    if rule.action == "amplify":
        preset = _amplify(rule, ids, strength)
    else:
        preset = suppression(ids, focal or ids, strength, rule.words, rule.head)
    kind = "" if rule.head == "known" else "discovered "
    label = _label(rule, f"{rule.action} {kind}{name} at {strength:g}")
    return dataclasses.replace(preset, where=rule.where, label=label, **_overrides(rule, preset))


def _with_head(rule: SteeringRule, catalogue: Catalogue) -> SteeringRule:
    """A rule that amplifies or suppresses, with the head of its concepts and their names without it ("discovered:12").

    A rule that names concepts of both heads keeps the known one, so that looking up the others is an error.
    """
    if rule.concepts is not None:
        located = [(*catalogue.locate(name), weight) for name, weight in rule.concepts.items()]
        heads = {head for head, _, _ in located if head != "feature"}
        rule = dataclasses.replace(rule, concepts={name: weight for _, name, weight in located})
    else:
        head, name = catalogue.locate(rule.concept)
        heads = {head} - {"feature"}
        rule = dataclasses.replace(rule, concept=name)
    return dataclasses.replace(rule, head=heads.pop() if len(heads) == 1 and rule.head == "known" else rule.head)


def _explained(error: UserError, rule: SteeringRule, catalogue: Catalogue) -> UserError:
    """The error for a concept that does not exist, with the place of the rule."""
    where = f"--{rule.action} {rule.option!r}"
    if rule.option and rule.concept == rule.option:  # what follows "=" is not a valid strength
        try:
            check_strength(rule.option.rpartition("=")[2].strip(), where)
        except UserError as invalid:
            return UserError(f"{str(invalid).rstrip('.')}, or the whole name of a concept.")
    if catalogue.has_name(rule.option, rule.head):  # a clamp, which needs a value
        return UserError(f"{where} names a concept, but no value; give '{rule.option}=1'.")
    return UserError(f"{rule.origin}: {error}" if rule.origin else str(error))


def _concept_ids(rule: SteeringRule, catalogue: Catalogue) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the concepts that the rule names, and of its group."""
    names = (rule.concept,) if rule.concept else tuple(rule.concepts or ())
    focal = tuple(i for name in names for i in catalogue.resolve(name, rule.head))
    require(
        rule.concepts is None or len(focal) == len(names) == len(set(focal)),
        f"concepts are {', '.join(names)}, but a weight belongs to one concept; name each once.",
    )
    return focal, catalogue.resolve(f"group:{rule.group}", rule.head) if rule.group else ()


def _amplify(rule: SteeringRule, ids: tuple[int, ...], strength: float) -> SteeringConfig:
    """The published preset, from half of the layers on, which is the default of `SteeringConfig`."""
    preset = SteeringConfig.injection(ids, mai_lm_target=strength)
    weights = None if rule.concepts is None else tuple(rule.concepts.values())
    return dataclasses.replace(preset, weights=weights, head=rule.head)


def suppression(
    ids: tuple[int, ...], focal: tuple[int, ...], strength: float, words: float | None = None, head: Head = "known"
) -> SteeringConfig:
    """The published preset that unlearns concepts, which has the strength 7, at any strength.

    ids: the concepts of `head` whose direction is subtracted; focal: those of them whose promoted tokens are
    suppressed.

    The suppression of the promoted tokens' logits is scaled with the strength, 20 at 7, unless `words` sets it: fixed
    at 20 it would dominate at small strengths. It is divided among several focal concepts, since each adds its own
    tokens and together they would suppress most of a group's vocabulary.
    """
    tokens = _PRESET_SUPPRESSION * strength / PRESET_STRENGTHS["suppress"] if words is None else words
    preset = SteeringConfig.injection_relu(ids[0], ids[1:], mai_lm_target=-strength)
    return dataclasses.replace(preset, relu_logit_mask={i: tokens / len(focal) for i in focal}, head=head)


def _overrides(rule: SteeringRule, preset: SteeringConfig) -> dict[str, Any]:
    """Fields of the injection that the rule sets in place of the preset's."""
    fields: dict[str, Any] = {}
    if rule.layer is not None:
        fields["inject_layer"] = rule.layer
    if rule.tokens is not None:
        fields["inject_alpha_schedule"] = "fixed" if rule.tokens == "all" else "hard_cutoff"
        fields["cutoff_tokens"] = preset.cutoff_tokens if rule.tokens == "all" else rule.tokens
    if rule.raw is not None:
        fields["normalize_mai_lm_target"] = not rule.raw
    return fields


def _clamp(rule: SteeringRule, ids: tuple[int, ...], name: str) -> SteeringConfig:
    assert rule.value is not None
    kind = "" if rule.head == "known" else "discovered "
    values = dict.fromkeys(ids, rule.value)
    known, discovered = (values, None) if rule.head == "known" else (None, values)
    label = _label(rule, f"clamp {kind}{name} at {rule.value:g}")
    return SteeringConfig(
        intervene_known=known, intervene_unknown=discovered, clamp_offsets=rule.at, epsilon=rule.epsilon, label=label
    )


def _check_clamps(rules: Sequence[SteeringRule], config: ModelConfig) -> None:
    """Raises `UserError` for clamps that change nothing.

    Under the published epsilon, the correction term restores whatever a clamp of discovered concepts takes away (a
    strict model has no such term). In a model without discovered concepts, the remainder of the hidden state stands in
    for them, and restores what a clamp of known concepts takes away.
    """
    strict = config.concept is not None and config.concept.is_strict
    require(
        not rules or strict or any(rule.head == "known" or rule.epsilon == "frozen" for rule in rules),
        "Clamping discovered concepts alone changes nothing under the published epsilon, which restores the rest; give "
        "epsilon 'frozen'.",
    )
    require(
        not rules or config.concept is None or config.concept.use_unknown or rules[0].epsilon == "frozen",
        "This model has no discovered concepts, so clamping known ones changes nothing under the published epsilon; "
        "give epsilon 'frozen'.",
    )


def _label(rule: SteeringRule, effect: str) -> str:
    label = f"{rule.origin}: {effect}" if rule.origin else effect
    return f"{label} ({rule.reason})" if rule.reason else label


def _display_name(rule: SteeringRule, catalogue: Catalogue, focal: tuple[int, ...]) -> str:
    """The rule's concepts in a label: the catalogue's name in place of an id."""
    if rule.concepts is not None:
        names = (catalogue.get(i, rule.head).name for i in focal)
        return " + ".join(f"{weight:g} {name}" for name, weight in zip(names, rule.concepts.values()))
    concept = catalogue.get(focal[0], rule.head).name if len(focal) == 1 else rule.concept
    group = f"group:{rule.group}" if rule.group else ""
    return " with ".join(part for part in (concept, group) if part)

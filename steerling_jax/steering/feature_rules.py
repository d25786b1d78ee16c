"""Steering rules that name a feature of an autoencoder, as `FeatureSteering`.

A strength without a unit would mean something else for each feature: latents of one are at most 2, of another at most
200. So a rule's strength is a multiple of the feature's largest latent, which was measured on texts, unless the rule is
`raw` and its strength the factor α itself.
"""

from __future__ import annotations

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.errors import UserError, require
from steerling_jax.steering.features import FeatureSteering
from steerling_jax.steering.rules import SteeringRule

_DEFAULT = 1.0  # of the largest latent
_FOR_CONCEPTS = ("layer", "tokens", "words")  # fields without a meaning for features


def names_feature(rule: SteeringRule, catalogue: Catalogue) -> bool:
    """Whether the rule is about a feature."""
    names = (rule.concept,) if rule.concept else tuple(rule.concepts or ())
    return rule.head == "known" and any(catalogue.locate(name)[0] == "feature" for name in names)


def feature_steering(rule: SteeringRule, bundle: Bundle) -> FeatureSteering:
    """What the rule does. Raises `UserError` for a feature that does not exist, and for what features cannot do."""
    origin, catalogue, features = rule.origin or "A rule", bundle.concepts, bundle.features
    require(rule.action != "clamp", f"{origin}: a feature cannot be clamped; amplify or suppress it.")
    if rule.concepts is not None or rule.group:
        raise UserError(f"{origin}: several features or concepts with a feature are no one direction; give a rule for "
                        "each.")  # fmt: skip
    for name in _FOR_CONCEPTS:
        given = getattr(rule, name)
        require(given is None, f"{origin}: {name} is not for features, which are added to the block that their "
                "autoencoder reads; leave it out.", name)  # fmt: skip
    require(rule.where != "prompt", f"{origin}: where is 'prompt', but a feature is added at 'all' positions or at "
            "'generated' ones.", "where")  # fmt: skip
    try:
        number, *others = catalogue.resolve(catalogue.locate(rule.concept)[1], "feature")
    except UserError as error:
        raise UserError(f"{rule.origin}: {error}" if rule.origin else str(error)) from None
    require(not others, f"{origin}: {rule.concept} has several features; give a rule for each.")
    part, own_number = (None, number) if features is None else features.locate(number)
    if part is None or part.layer is None:
        which = "This model's features" if part is None else part.name
        raise UserError(f"{which} cannot be added to the output of a block, because no block is known; give an "
                        "autoencoder of a block, with layer= if its files do not say it.")  # fmt: skip
    entry, by_number = catalogue.get(number, "feature"), catalogue.numbered(number, "feature")
    own = getattr(entry, rule.action)
    strength = rule.strength if rule.strength is not None else _DEFAULT if own is None else own
    alpha, size = strength, f"{strength:g}"
    if not rule.raw:
        if not entry.largest:
            raise UserError(
                f"{origin}: the largest latent of {by_number} was not measured, so the strength has no unit; "
                "measure it with `steerling features --catalogue`, or give the factor itself (raw, --raw-strengths)."
            )
        alpha, size = strength * entry.largest, f"{strength:g} of its largest latent, {entry.largest:.3g}"
    direction = tuple(np.asarray(part.directions[own_number], np.float32).tolist())
    name = by_number + (f" ({entry.name})" if entry.is_named and entry.name != by_number else "")
    label = f"{rule.action} {name} at {size}" + (" of generated tokens" if rule.where == "generated" else "")
    label = (f"{rule.origin}: " if rule.origin else "") + label + (f" ({rule.reason})" if rule.reason else "")
    return FeatureSteering(
        own_number,
        alpha if rule.action == "amplify" else -alpha,
        part.layer,
        direction,
        "generated" if rule.where == "generated" else "all",
        label,
    )

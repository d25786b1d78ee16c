"""`sj.amplify`, `sj.suppress` and `sj.clamp`: steering by names of concepts and features, before a model is at hand.

What they return is taken wherever a `SteeringConfig` is; the names are looked up in the catalogue of the model that is
steered. The presets and defaults are those of the command line's options of these names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from steerling_jax.concepts.concept import Head
from steerling_jax.steering.rules import Action, SteeringRule, Where, make_rule


def amplify(
    concept: str | int | Mapping[str | int, float],
    strength: float | None = None,
    *,
    layer: int | None = None,
    tokens: int | Literal["all"] | None = None,
    raw: bool | None = None,
    where: Where = "masks",
) -> SteeringRule:
    """Steering towards a concept, or a feature of an autoencoder: its direction is added to hidden states.

    Args:
        concept: a name in any case, an id, or `group:NAME` for a whole group; or several with their weights, as a
            mapping. Of a feature, its name or `feature:12`, for a model that `sj.with_features` gave features.
        strength: in logits of the direction's best-aligned token, or a length with `raw`; None for the preset's. Of a
            feature, a multiple of its largest latent, or the factor of its direction with `raw`; None for 1.
        layer: the first layer, from 1, after which the direction is added; None for the preset's.
        tokens: after how many committed tokens it ends, "all" for never; None for the preset's.
        raw: whether the strength is the length of the added vector.
        where: at masked positions ("masks") or at those of the prompt ("prompt"); of a feature at all positions, or at
            those after the prompt ("generated").

    Raises:
        UserError: a value is invalid. A concept that the model lacks is reported when the model is steered.

    Example:
        >>> more = sj.amplify("Networking", 0.6) + sj.suppress("Email and MIME", 0.1)
        >>> made = sj.generate(bundle, "Return the", sj.GenerationConfig(max_new_tokens=16, seed=3), more)
        >>> made.trace.steering
        ('amplify Networking at 0.6', 'suppress Email and MIME at 0.1')
    """
    if isinstance(concept, Mapping):
        target: dict[str, Any] = {"concepts": {str(name): weight for name, weight in concept.items()}}
    else:
        target = {"concept": concept}
    fields = {"strength": strength, "layer": layer, "tokens": tokens, "raw": raw, "where": where}
    return _rule("amplify", target | fields)


def suppress(
    concept: str | int,
    strength: float | None = None,
    *,
    words: float | None = None,
    layer: int | None = None,
    tokens: int | Literal["all"] | None = None,
    raw: bool | None = None,
    where: Where = "masks",
) -> SteeringRule:
    """Steering away from a known concept: its direction is subtracted, and the tokens that it promotes are suppressed.

    words: the strength of the second part; None for one in proportion to `strength`. The other arguments and errors are
    those of `amplify`; the strength is a length unless `raw` is False. Of a feature, its direction is subtracted.
    """
    fields = {"strength": strength, "words": words, "layer": layer, "tokens": tokens, "raw": raw, "where": where}
    return _rule("suppress", {"concept": concept} | fields)


def clamp(
    concept: str | int,
    value: float,
    *,
    head: Head = "known",
    at: tuple[int, int] | None = None,
    epsilon: Literal["published", "frozen"] = "published",
) -> SteeringRule:
    """Sets a concept's activation: 0 is off, 1 is on.

    head: "known" or "discovered". at: the half-open range of positions, counted from the first token after the prompt;
    None for all. epsilon: how the correction term behaves, see `SteeringConfig`. Errors are those of `amplify`.
    """
    return _rule("clamp", {"concept": concept, "value": value, "head": head, "at": at, "epsilon": epsilon})


def _rule(action: Action, fields: dict[str, Any]) -> SteeringRule:
    given = {name: value for name, value in fields.items() if value is not None}
    # The function's name begins the messages of invalid values, but not the labels of traces.
    return dataclasses.replace(make_rule({"action": action, **given}, f"sj.{action}"), origin="")

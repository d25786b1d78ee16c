"""The steering options that several commands share, parsed into steering rules."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import require
from steerling_jax.steering.config import MAX_STRENGTH
from steerling_jax.steering.rule_syntax import parse_option, parse_span
from steerling_jax.steering.rules import EPSILONS, POSITIONS, ResponseRule, Rule, SteeringRule

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.steering.plan import Resolved


def add_steering_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `parse_steering_options` reads."""
    group = parser.add_argument_group("steering", "by concepts; `steerling concepts` finds their names")
    for action, effect in (("amplify", "write more about a concept or feature"), ("suppress", "avoid one")):
        group.add_argument(
            f"--{action}",
            action="append",
            default=[],
            metavar="NAME[=X]",
            help=f"{effect}: name, id, group:NAME or feature:ID; can be repeated (default strength: the model's)",
        )
    group.add_argument(
        "--clamp",
        action="append",
        default=[],
        metavar="NAME=X",
        help="set a known concept's activation: 0 is off, 1 is on; can be repeated",
    )
    group.add_argument(
        "--clamp-discovered",
        action="append",
        default=[],
        metavar="ID=X",
        help="set a discovered concept's activation; can be repeated",
    )
    group.add_argument(
        "--clamp-at", metavar="START:END", help="positions to clamp, counted from the first new token, 0 (default: all)"
    )
    group.add_argument(
        "--epsilon",
        choices=EPSILONS,
        help="how clamps treat the part of a hidden state that no concept explains (default: published)",
    )
    group.add_argument(
        "--policy", action="append", default=[], metavar="FILE", help="a file of steering rules (TOML); can be repeated"
    )
    group.add_argument(
        "--like-response", metavar="TEXT", help="steer towards responses similar to this one; @FILE reads a file"
    )
    group.add_argument(
        "--like-strength",
        type=number_in_range(float, 0.0, MAX_STRENGTH),
        metavar="X",
        help="strength of --like-response (default: 8)",
    )
    group.add_argument(
        "--catalogue", metavar="FILE", help="concept names to use in place of the model's (JSON or Parquet)"
    )
    group.add_argument(
        "--autoencoder", metavar="PATH", help="an autoencoder of one of the model's blocks, whose features can be named"
    )
    group.add_argument(
        "--autoencoder-k",
        type=number_in_range(int, 1),
        metavar="N",
        help="latents that it keeps of a token, where its files do not say it",
    )
    group.add_argument(
        "--raw-strengths",
        action="store_true",
        help="strengths are lengths of what is added (concepts) and factors of the direction (features)",
    )
    group.add_argument(
        "--positions", choices=POSITIONS, help="where features are added, with or without the prompt (default: all)"
    )


def parse_steering_options(args: argparse.Namespace) -> tuple[Rule, ...]:
    """Rules from the options and the files that they name. Raises `UserError`; needs no model."""
    rules: list[Rule] = [
        parse_option(action, text) for action in ("amplify", "suppress") for text in getattr(args, action)
    ]
    changes = {"raw": args.raw_strengths or None, **({"where": args.positions} if args.positions else {})}
    rules = [dataclasses.replace(rule, **changes) for rule in rules if isinstance(rule, SteeringRule)]
    for given, name in ((args.raw_strengths, "--raw-strengths"), (args.positions, "--positions")):
        require(bool(rules) or not given, f"{name} needs --amplify or --suppress; a policy says it in its rules.")
    rules += _clamps(args)
    if args.policy:
        from steerling_jax.io.steering_policy import read_policy

        for path in args.policy:
            rules += read_policy(path)
    require(
        args.like_strength is None or args.like_response is not None,
        "--like-strength needs --like-response; give both.",
    )
    response = args.like_response
    if response is not None:
        if response.startswith("@"):
            from steerling_jax.io.text_files import read_text

            response = read_text(Path(response[1:]), "response")
        rules.append(ResponseRule(response, args.like_strength))
    return tuple(rules)


def resolve_options(rules: tuple[Rule, ...], bundle: Bundle) -> tuple[Resolved, ...]:
    """`resolve_rules`, with a note about strengths that are neither given nor measured for this model."""
    from steerling_jax.cli.console import note
    from steerling_jax.steering.features import FeatureSteering
    from steerling_jax.steering.resolve import resolve_rules
    from steerling_jax.steering.strengths import measured_strength

    configs = resolve_rules(rules, bundle)
    presets = {
        rule.origin or f"--{rule.action} {rule.concept}"
        for rule, config in zip(rules, configs, strict=True)
        if isinstance(rule, SteeringRule)
        and not isinstance(config, FeatureSteering)
        and rule.action != "clamp"
        and rule.strength is None
        if measured_strength(bundle, rule.action, config.concept_ids, config.head) is None
    }
    if presets:
        note(
            f"{', '.join(sorted(presets))}: without a number, the strength is that of the published 8B models, which "
            "may be too large for this one and then destroys its text; `steerling calibrate` measures this model's."
        )
    return configs


def with_catalogue(bundle: Bundle, path: str | None) -> Bundle:
    """The bundle with the concept names of the file of --catalogue; the same bundle if the option was not given."""
    if path is None:
        return bundle
    from steerling_jax.io.catalogue import read_catalogue

    return dataclasses.replace(bundle, catalogue=read_catalogue(path, bundle.config))


def with_names(bundle: Bundle, args: argparse.Namespace) -> Bundle:
    """The bundle with the concept names of --catalogue and the features of --autoencoder, where these are given."""
    bundle = with_catalogue(bundle, args.catalogue)
    if args.autoencoder is not None:
        from steerling_jax.autoencoders.model_features import with_features
        from steerling_jax.io.autoencoders.load import load_autoencoder

        bundle = with_features(bundle, load_autoencoder(args.autoencoder, k=args.autoencoder_k))
    return bundle


def _clamps(args: argparse.Namespace) -> list[SteeringRule]:
    rules = [parse_option("clamp", text) for text in args.clamp]
    rules += [parse_option("clamp-discovered", text) for text in args.clamp_discovered]
    require(
        bool(rules) or (args.clamp_at is None and args.epsilon is None),
        "--clamp-at and --epsilon need --clamp or --clamp-discovered; give both.",
    )
    at = None if args.clamp_at is None else parse_span(args.clamp_at, "--clamp-at")
    return [dataclasses.replace(rule, at=at, epsilon=args.epsilon or rule.epsilon) for rule in rules]

"""Steering as people ask for it, on the command line or in JSON, to `SteeringConfig`s."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.errors import UserError, require
from steerling_jax.steering.rules import (
    EPSILONS,
    JSON_NAMES,
    STRENGTHS,
    SteeringRule,
    check_name,
    check_strength,
    parse_option,
    parse_rules,
    parse_span,
)

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.steering.config import SteeringConfig

_JSON = (*JSON_NAMES, "like_response", "like_strength")
_MOST_RULES = 64  # in JSON: each one is looked up and named in the trace


@dataclass(frozen=True)
class SteeringOptions:
    """What was asked for, as far as it can be checked without a model.

    like: a text whose concepts are injected in the prompt, like_strength of them. catalogue: a file of concepts, in
    place of the model's own.
    """

    rules: tuple[SteeringRule, ...] = ()
    like: str | None = None
    like_strength: float | None = None
    catalogue: str | None = None

    def configs(self, bundle: Bundle) -> tuple[SteeringConfig, ...]:
        """What this model is to do. Raises `UserError` for concepts that it does not have."""
        if not self.rules and self.like is None:
            return ()
        from steerling_jax.io.catalogue import read_catalogue
        from steerling_jax.steering.by_name import steering_of
        from steerling_jax.steering.response import DEFAULT_STRENGTH, response_steering

        if bundle.config.concept is None:
            raise UserError("Steering needs a model with known concepts; this one has none.")
        catalogue = read_catalogue(self.catalogue, bundle.config) if self.catalogue else bundle.concepts
        found = steering_of(self.rules, catalogue, bundle.config)
        if self.like is not None:
            strength = DEFAULT_STRENGTH if self.like_strength is None else self.like_strength
            found = (*found, response_steering(bundle, self.like, strength))
        return found


def add_steering_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steering", "by known concepts; `steerling concepts` finds their names")
    for action, what in (("amplify", "write more of a concept"), ("suppress", "keep away from a concept")):
        group.add_argument(
            f"--{action}",
            action="append",
            default=[],
            metavar="NAME[=X]",
            help=f"{what}: its name, its id or group:NAME; may be repeated (strength: {STRENGTHS[action]:g})",
        )
    clamp, discovered = "set a known concept's activation: 0 is off, 1 is on; may be repeated", "… a discovered one's"
    group.add_argument("--clamp", action="append", default=[], metavar="NAME=X", help=clamp)
    group.add_argument("--clamp-discovered", action="append", default=[], metavar="ID=X", help=discovered)
    group.add_argument(
        "--clamp-at", metavar="START:END", help="where in the text, from its first token, 0 (default: all)"
    )
    group.add_argument("--epsilon", choices=EPSILONS, help="of clamps: what becomes of the rest (default: published)")
    group.add_argument("--policy", action="append", default=[], metavar="FILE", help="rules in TOML; may be repeated")
    group.add_argument("--like-response", metavar="TEXT", help="lean towards answers like this one; @FILE reads a file")
    group.add_argument("--like-strength", metavar="X", help="how much (default: 8)")
    group.add_argument("--catalogue", metavar="FILE", help="names of concepts (JSON, Parquet), in place of the model's")


def load_named(model: str | None, catalogue: str | None) -> Bundle:
    """A model whose concepts have the names of a catalogue file, if there is one: for what requests name, too."""
    import steerling_jax as sj
    from steerling_jax.io.catalogue import read_catalogue

    bundle = sj.load(model)
    if catalogue:
        vars(bundle)["concepts"] = read_catalogue(catalogue, bundle.config)
    return bundle


def from_args(args: argparse.Namespace) -> SteeringOptions:
    """Reads the options and the files that they name."""
    rules = [parse_option(action, text) for action in ("amplify", "suppress") for text in getattr(args, action)]
    rules += _clamps(args)
    if args.policy:
        from steerling_jax.io.steering_policy import read_policy

        for path in args.policy:
            rules += read_policy(path)
    if args.like_strength is not None and args.like_response is None:
        raise UserError("--like-strength needs --like-response; give both.")
    strength = None if args.like_strength is None else check_strength(args.like_strength, "--like-strength")
    like = args.like_response
    if like is not None and like.startswith("@"):
        like = read_text(Path(like[1:]), "response")
    return SteeringOptions(tuple(rules), like, strength, args.catalogue)


def _clamps(args: argparse.Namespace) -> list[SteeringRule]:
    rules = [parse_option("clamp", text) for text in args.clamp]
    rules += [parse_option("clamp-discovered", text) for text in args.clamp_discovered]
    require(
        bool(rules) or (args.clamp_at is None and args.epsilon is None),
        "--clamp-at and --epsilon need --clamp or --clamp-discovered; give both.",
    )
    at = None if args.clamp_at is None else parse_span(args.clamp_at, "--clamp-at")
    return [dataclasses.replace(rule, at=at, epsilon=args.epsilon or rule.epsilon) for rule in rules]


def from_json(values: Any, bundle: Bundle) -> tuple[SteeringConfig, ...]:
    """What `steering_rules.parse_rules` reads, and `"like_response": "TEXT", "like_strength": 8`; all of it optional.
    Raises `UserError`."""
    if not isinstance(values, Mapping):
        raise UserError(f"steering is {values!r}; give an object with {', '.join(_JSON)}.")
    for name in values:
        check_name(name, _JSON, f"steering: {name!r} is not a kind of steering")
    rules = parse_rules({name: value for name, value in values.items() if not name.startswith("like_")})
    require(len(rules) <= _MOST_RULES, f"steering has {len(rules)} rules; give at most {_MOST_RULES}.")
    like, strength = values.get("like_response"), values.get("like_strength")
    if like is not None and not isinstance(like, str):
        raise UserError(f"steering: like_response is {like!r}; give a text.")
    if strength is not None:
        if like is None:
            raise UserError("steering: like_strength needs like_response; give both.")
        strength = check_strength(strength, "steering, like_strength")
    return SteeringOptions(rules, like, strength).configs(bundle)


def read_text(path: Path, what: str) -> str:
    """A text file; `what` is what errors call it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read the {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The {what} {path} is not text in UTF-8 ({error.reason}); give a text file.") from error

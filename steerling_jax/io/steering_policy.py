"""Reads a steering policy, a TOML file of rules:

[[rule]]
action = "suppress"
concept = "Email and MIME"
strength = 7
reason = "not in this handbook"
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.steering.rule_syntax import parse_policy
from steerling_jax.steering.rules import SteeringRule


def read_policy(path: str | Path) -> tuple[SteeringRule, ...]:
    """The rules in a file. Raises `UserError` that names the file and, for an invalid rule, the rule and the field."""
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the policy {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}); see docs/guide/steering.md for an example.") from error
    return parse_policy(document, path.name)

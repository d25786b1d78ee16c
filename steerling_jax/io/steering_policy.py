"""Reads a steering policy, a TOML file of rules:

[[rule]]
action = "suppress"
concept = "Email and MIME"
strength = 7
reason = "not in this handbook"
"""

from __future__ import annotations

from pathlib import Path

from steerling_jax.io.text_files import read_toml
from steerling_jax.steering.rule_syntax import parse_policy
from steerling_jax.steering.rules import SteeringRule


def read_policy(path: str | Path) -> tuple[SteeringRule, ...]:
    """The rules in a file. Raises `UserError` that names the file and, for an invalid rule, the rule and the field."""
    path = Path(path)
    return parse_policy(read_toml(path, "policy"), path.name)

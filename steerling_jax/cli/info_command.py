"""`steerling info`: a model's configuration, parameters and tokenizer."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from steerling_jax.cli.arguments import add_model

HELP = """\
Show a model's configuration, parameters and tokenizer.

examples:
  steerling info
  steerling info ./small-model
  steerling info ./runs/small --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the information as JSON")


def run(args: argparse.Namespace) -> None:
    import jax

    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stdout

    bundle = sj.load(args.model)
    leaves = jax.tree.leaves(bundle.params)
    facts: dict[str, Any] = {
        "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
        "dtypes": sorted({str(leaf.dtype) for leaf in leaves}),
        "tokenizer": type(bundle.tokenizer).__name__,
        "config": dataclasses.asdict(bundle.config),
    }
    if args.json:
        print_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in flatten(facts):
        table.add_row(name, value)
    stdout().print(table)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts as rows of dotted names and values."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)))]
    return [(prefix, f"{value:,}" if prefix == "parameters" else str(value))]

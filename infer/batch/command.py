"""The part of `steerling generate` that reads a file of requests: its options, its progress, its exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from steerling_jax.cli.steering_options import from_args, load_named
from steerling_jax.errors import UserError


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many texts", "the other options hold for lines that do not say otherwise")
    group.add_argument("--input", metavar="FILE", help='requests, a line each: {"id": 1, "prompt": "TEXT"}')
    group.add_argument("--output", metavar="FILE", help="results, a line each; what it holds already is not done again")
    group.add_argument("--rows", type=int, default=8, metavar="N", help="texts written at once (default: %(default)s)")


def run_batch(args: argparse.Namespace) -> int:
    """Exit code: 0, or 1 where lines got an error in place of a text."""
    if args.input is None or args.output is None:
        raise UserError("Many texts need both --input and --output; give both.")
    for name in ("text", "prompt_ids", "stop"):
        if getattr(args, name) is not None:
            what = "a text" if name == "text" else f"--{name.replace('_', '-')}"
            raise UserError(f"With --input, {what} stands in the lines of the file; leave it out.")
    source, target = Path(args.input), Path(args.output)
    if source.resolve() == target.resolve():
        raise UserError(f"--input and --output are both {source}; write the results to another file.")
    if source.exists() and not source.is_file():
        raise UserError(f"--input is {source}, but it is read twice, so it must be a regular file; write one.")
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}, but it must be at least 1.")
    steering = from_args(args)
    from steerling_jax.cli.console import note, progress
    from steerling_jax.infer.batch.file import BatchFile, count_lines

    total = count_lines(source)
    bundle = load_named(args.model, args.catalogue)
    batch = BatchFile(bundle, source, target, _defaults(args), steering.configs(bundle), args.rows)
    with progress(unit="texts") as bar:
        task = bar.add_task("writing", total=total)
        for finished in batch.run():
            bar.update(task, completed=finished)
    note(f"{batch.written} texts written to {target}; {batch.skipped} were there already; {batch.failed} errors.")
    return 1 if batch.failed else 0


def _defaults(args: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "temperature", "top_p", "repetition_penalty", "cfg_scale", "seed")
    defaults = {name: getattr(args, name) for name in names} | {"max_tokens": args.max_new_tokens}
    return defaults | ({"temperature": 0.0, "repetition_penalty": 1.0} if args.greedy else {})

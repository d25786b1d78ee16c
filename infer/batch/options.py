"""The part of `steerling generate` that processes a file of requests: its options, progress and exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from steerling_jax.cli.arguments import number_in_range
from steerling_jax.cli.steering_options import parse_steering_options, resolve_options, with_names
from steerling_jax.errors import UserError


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run_batch` reads."""
    group = parser.add_argument_group("many texts", "the other options are defaults, which each line can override")
    group.add_argument("--input", metavar="FILE", help='requests, one a line: {"id": 1, "prompt": "TEXT"}')
    group.add_argument(
        "--output", metavar="FILE", help="results, one a line; ids that have one are skipped, except in a pipe"
    )
    group.add_argument(
        "--rows",
        type=number_in_range(int, 1),
        default=8,
        metavar="N",
        help="texts generated at the same time (default: %(default)s)",
    )


def run_batch(args: argparse.Namespace) -> int:
    """Runs the batch. Exit code: 0, or 1 if any line got an error in place of a text."""
    source, target = _paths(args)
    rules = parse_steering_options(args)
    import steerling_jax as sj
    from steerling_jax.cli.console import note, progress_bar
    from steerling_jax.infer.batch.request_file import count_requests
    from steerling_jax.infer.batch.run import BatchRun

    total = count_requests(source)
    bundle = with_names(sj.load(args.model), args)
    steering = resolve_options(rules, bundle)
    batch = BatchRun(bundle, source, target, _defaults(args), steering, args.rows, report_error=note)
    with progress_bar(unit="texts") as bar:
        task = bar.add_task("writing", total=total)
        for finished in batch.run():
            bar.update(task, completed=finished)
    note(f"{batch.written} texts written to {target}; {batch.skipped} were there already; {batch.failed} errors.")
    return 1 if batch.failed else 0


def _paths(args: argparse.Namespace) -> tuple[Path, Path]:
    if args.input is None or args.output is None:
        raise UserError("Many texts need both --input and --output; give both.")
    for name in ("text", "prompt_ids", "stop"):
        if getattr(args, name) is not None:
            option = "TEXT" if name == "text" else f"--{name.replace('_', '-')}"
            raise UserError(f"{option} cannot be combined with --input; put it into the lines of the file.")
    source, target = Path(args.input), Path(args.output)
    if source.resolve() == target.resolve():
        raise UserError(f"--input and --output are both {source}; write the results to another file.")
    if source.exists() and not source.is_file():
        raise UserError(f"--input is {source}, but it is read twice, so it must be a regular file; write one.")
    return source, target


def _defaults(args: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "temperature", "top_p", "top_k", "repetition_penalty", "cfg_scale", "seed")
    defaults = {name: getattr(args, name) for name in names} | {"max_tokens": args.max_new_tokens}
    return defaults | ({"temperature": 0.0, "repetition_penalty": 1.0} if args.greedy else {})

"""`steerling demo`: a continuation, taken apart into the concepts behind it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerling_jax.api import Bundle
    from steerling_jax.generation import Generation

HELP = """\
Write a continuation and show, chunk by chunk, the concepts that it came from.

examples:
  steerling demo
  steerling demo "re.split(pattern, string)" --max-new-tokens 128 --seed 3
  steerling demo --json
"""

PROMPT = "socket.create_connection(address, timeout)\n\nConnect to"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="?", default=PROMPT, metavar="TEXT", help="what to continue (default: a line of documentation)")
    add("--model", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id (default: bundled)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="a multiple of the block (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--concepts", type=int, default=5, metavar="N", help="of each kind, a chunk (default: %(default)s)")
    add("--json", action="store_true", help="print the text and the report as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json, stdout

    note("Loading JAX and the model …")
    import steerling_jax as sj

    from .report import as_dict, make_report, render

    bundle = sj.load(args.model)
    generation = _write(bundle, args)
    report = make_report(bundle, generation)
    if args.json:
        print_json({"prompt": args.text, "text": generation.text, "seed": args.seed} | as_dict(report, args.concepts))
        return
    from rich.text import Text

    stdout().print(Text(args.text, style="dim"))
    stdout().print(render(report, args.concepts))
    note(
        "Shares are of the logits of what was written. Net: known, discovered and epsilon (what no concept explains), "
        f"each as one number a token. A logit and the sum of its parts differ by at most {report.check:.1e}."
    )


def _write(bundle: Bundle, args: argparse.Namespace) -> Generation:
    from steerling_jax.cli.console import progress
    from steerling_jax.generation import Generation, stream
    from steerling_jax.generation_config import GenerationConfig
    from steerling_jax.request import BlockDone

    config = GenerationConfig(max_new_tokens=args.max_new_tokens, seed=args.seed)
    with progress(unit="tokens") as bar:
        task = bar.add_task("writing", total=args.max_new_tokens)
        for event in stream(bundle, args.text, config):
            if isinstance(event, Generation):
                return event
            if isinstance(event, BlockDone):
                bar.update(task, completed=args.max_new_tokens * event.number // event.blocks)
    raise AssertionError("a stream ends with its Generation")

"""`steerling demo`: generates a continuation and explains it by concepts."""

from __future__ import annotations

import argparse

from steerling_jax.cli.arguments import add_model_option, add_reference_option, number_in_range
from steerling_jax.cli.generation_options import generate_with_progress

HELP = """\
Generate a continuation and show, chunk by chunk, the concepts that it came from.

examples:
  steerling demo
  steerling demo "Return True if the file" --max-new-tokens 32 --seed 0
  steerling demo --json
"""

PROMPT = "socket.create_connection(address, timeout)\n\nConnect to"
TOKENS, SEED = 128, 0


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="?", default=PROMPT, metavar="TEXT", help="what to continue (default: a line of documentation)")
    add_model_option(parser)
    add(
        "--max-new-tokens", type=int, default=TOKENS, metavar="N", help="most tokens of the text (default: %(default)s)"
    )
    add("--seed", type=int, default=SEED, metavar="N", help="default: %(default)s")
    add(
        "--concepts",
        type=number_in_range(int, 1),
        default=5,
        metavar="N",
        help="concepts of each kind per chunk (default: %(default)s)",
    )
    add_reference_option(add)
    add("--json", action="store_true", help="print the text and the report as JSON, see docs/design/trace-format.md")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json, stdout

    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.trace.document import make_document
    from steerling_jax.attribution.trace.explanation import explain
    from steerling_jax.attribution.trace.terminal import accuracy_note, render
    from steerling_jax.decoding.trace_record import record_of
    from steerling_jax.io.trace_file import model_origin

    bundle = sj.load(args.model)
    prompt = sj.Prompt(args.text, sj.GenerationConfig(max_new_tokens=args.max_new_tokens, seed=args.seed))
    record = record_of(bundle, model_origin(bundle), prompt, generate_with_progress(bundle, prompt, record_hidden=True))
    explanation = explain(bundle, record, inputs=False, reference=args.reference)
    if args.json:
        print_json(make_document(explanation, args.concepts))
        return
    from rich.text import Text

    stdout().print(Text(record.prompt_text, style="dim"))
    stdout().print(render(explanation, args.concepts))
    if accuracy := accuracy_note(explanation):
        note(accuracy)
    note("`steerling trace` also shows the input tokens and the training data behind a text.")

"""`steerling generate`: continues a text, or every text of a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from steerling_jax.cli.generation_options import (
    add_generation_options,
    check_generation_options,
    generate_with_progress,
    make_prompt,
    note_seed,
    prompt_text_or_ids,
    read_standard_input,
)
from steerling_jax.cli.steering_options import add_steering_options, parse_steering_options
from steerling_jax.errors import UserError
from steerling_jax.infer.batch.options import add_batch_options, run_batch

if TYPE_CHECKING:
    from steerling_jax.decoding.generation import Generation

HELP = """\
Continue a text, or every text of a file.

examples:
  steerling generate "Return True if the file" --max-new-tokens 32 --seed 0
  steerling generate "Return the" --max-new-tokens 32 --seed 4 --amplify Files
  steerling generate "Return the" --max-new-tokens 32 --seed 4 --suppress "Email and MIME=0.2"
  steerling generate "Send the message to" --max-new-tokens 64 --seed 2 --drafts 4 --json
  steerling generate "Return True if the file" --max-new-tokens 32 --seed 0 --trace record.json
  steerling generate --model ./small-model --prompt-ids "5 17 4" --greedy --json
  steerling generate --model SmolLM2-135M-Instruct.Q4_1.gguf --chat "What is a heron?" --greedy --max-new-tokens 64
  steerling generate - --model SmolLM2-135M-Instruct.Q4_1.gguf --chat
  steerling generate --input requests.jsonl --output results.jsonl --max-new-tokens 64
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_generation_options(parser)
    parser.add_argument("--json", action="store_true", help="print the text, its tokens and the commits as JSON")
    parser.add_argument(
        "--trace", metavar="FILE", help="also write the trace, which `steerling trace --from` explains later"
    )
    add_batch_options(parser)
    add_steering_options(parser)


def run(args: argparse.Namespace) -> int | None:
    check_generation_options(args)
    read_standard_input(args)
    if args.input is not None or args.output is not None:
        _check_batch(args)
        return run_batch(args)
    prompt_text_or_ids(args)
    if args.trace is not None:
        from steerling_jax.io.atomic import resolve_output

        resolve_output(args.trace)  # raises before the text is generated
    rules = parse_steering_options(args)  # before the model is loaded, so that invalid rules are reported at once
    import steerling_jax as sj
    from steerling_jax.cli.console import note, print_json

    bundle = sj.load(args.model)
    prompt = make_prompt(args, bundle, rules)
    result = generate_with_progress(bundle, prompt, drafts=args.drafts)
    if args.trace is not None:
        from steerling_jax.decoding.trace_record import record_of
        from steerling_jax.io.trace_file import model_origin, write_trace

        write_trace(args.trace, record_of(bundle, model_origin(bundle), prompt, result))
    if args.json:
        print_json(_report(result))
        return None
    for label in result.trace.steering:
        note(label)
    note_seed(args, result.seed)
    print(result.text)  # noqa: T201
    return None


def _check_batch(args: argparse.Namespace) -> None:
    if args.drafts != 1 or args.commit_above is not None:
        raise UserError("--drafts and --commit-above are for one text; leave them out with --input.")
    if args.trace is not None:
        raise UserError('--trace is for one text; with --input, add "trace": true to the lines.')
    if args.chat:
        raise UserError("--chat is for one text; leave it out with --input.")
    if args.json:
        raise UserError("--json is for one text; leave it out with --input, whose results are JSON.")


def _report(result: Generation) -> dict[str, object]:
    trace = result.trace
    return {
        "text": result.text,
        "prompt_tokens": trace.prompt_length,
        "generated_tokens": result.generated_tokens,
        "seed": result.seed,
        "steering": trace.steering,
        "passes": trace.passes,
        "tokens": result.tokens,
        "commits": [commit._asdict() for commit in trace.commits],
    }

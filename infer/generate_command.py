"""`steerling generate`: continues a text."""

from __future__ import annotations

import argparse

from steerling_jax.cli.generation_options import (
    add_generation_options,
    check_generation_options,
    given_prompt,
    policies,
    settings,
    write,
)
from steerling_jax.cli.steering_options import add_steering_options, from_args
from steerling_jax.errors import UserError
from steerling_jax.infer.batch.command import add_batch_options, run_batch

HELP = """\
Continue a text.

examples:
  steerling generate "The garden in spring" --max-new-tokens 64
  steerling generate "The garden in spring" --seed 1 --temperature 0.8
  steerling generate "Connect to" --amplify "Email and MIME" --suppress Networking=7
  steerling generate "The garden in spring" --drafts 4 --json
  steerling generate "The garden in spring" --trace garden.json    # for `steerling trace --from garden.json`
  steerling generate --model ./small-model --prompt-ids "5 17 4" --greedy --json
  steerling generate --input requests.jsonl --output results.jsonl --max-new-tokens 64
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_generation_options(parser)
    parser.add_argument("--json", action="store_true", help="print text, tokens and commits as JSON")
    parser.add_argument("--trace", metavar="FILE", help="also write the trace, which `steerling trace --from` explains")
    add_batch_options(parser)
    add_steering_options(parser)


def run(args: argparse.Namespace) -> int | None:
    check_generation_options(args)
    if args.input is not None or args.output is not None:
        if args.drafts != 1 or args.commit_above is not None:
            raise UserError("--drafts and --commit-above are for one text; leave them out with --input.")
        if args.trace is not None:
            raise UserError('--trace is for one text; with --input, give the lines "trace": true.')
        if args.json:
            raise UserError("--json is for one text; leave it out with --input, whose results are JSON.")
        return run_batch(args)
    text_or_ids = given_prompt(args)
    import steerling_jax as sj
    from steerling_jax.cli.console import note, print_json

    steering = from_args(args)  # mistakes in it are told before the model is loaded
    bundle = sj.load(args.model)
    config = settings(args, bundle, text_or_ids)
    prompt = sj.Prompt(text_or_ids, config, steering.configs(bundle), policies(args))
    result = write(bundle, prompt, drafts=args.drafts)
    if args.trace is not None:
        from steerling_jax.decoding.trace_record import record_of
        from steerling_jax.io.trace_file import model_origin, write_trace

        write_trace(args.trace, record_of(bundle, model_origin(bundle), prompt, result))
    if not args.json:
        for label in result.trace.steering:
            note(label)
        print(result.text)  # noqa: T201
        return None
    trace = result.trace
    print_json(
        {
            "text": result.text,
            "prompt_tokens": trace.prompt_length,
            "generated_tokens": result.generated_tokens,
            "seed": result.seed,
            "steering": trace.steering,
            "passes": trace.passes,
            "tokens": result.tokens,
            "commits": [commit._asdict() for commit in trace.commits],
        }
    )
    return None

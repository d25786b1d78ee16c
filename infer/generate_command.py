"""`steerling generate`: continues a text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.api import Bundle
    from steerling_jax.generation import Generation
    from steerling_jax.generation_config import GenerationConfig

HELP = """\
Continue a text.

examples:
  steerling generate "The garden in spring" --max-new-tokens 64
  steerling generate "The garden in spring" --seed 1 --temperature 0.8
  steerling generate --model ./small-model --prompt-ids "5 17 4" --greedy --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="?", metavar="TEXT", help="what to continue")
    add("--prompt-ids", metavar="IDS", help='token ids in place of a text, as in "5 17 4"')
    add("--model", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id (default: bundled)")
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="a multiple of the model's block (default: what fits, up to 128)",
    )
    add("--steps", type=int, metavar="N", help="default: one a token")
    add("--temperature", type=float, metavar="X", help="a fixed temperature, in place of the entropy's")
    add("--top-p", type=float, default=0.8, metavar="X", help="mass of the nucleus (default: %(default)s)")
    add("--repetition-penalty", type=float, default=1.1, metavar="X", help="default: %(default)s; 1 for none")
    add("--cfg-scale", type=float, default=0.0, metavar="X", help="guidance (default: none)")
    add("--seed", type=int, metavar="N", help="the same text every time (default: another one)")
    add("--stop", action="append", metavar="TOKEN", help="an id, or a text that is one token; may be repeated")
    add("--greedy", action="store_true", help="always the likeliest token, without a repetition penalty")
    add("--json", action="store_true", help="print text, tokens and commits as JSON")


def run(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.prompt_ids is None):
        raise UserError("Give a text to continue, or --prompt-ids (one of the two).")
    if args.greedy and args.temperature is not None:
        raise UserError("--greedy and --temperature contradict each other; give one of them.")
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json

    prompt = args.text if args.prompt_ids is None else parse_ids(args.prompt_ids)
    bundle = sj.load(args.model)
    result = write(bundle, prompt, settings(args, bundle, prompt))
    if not args.json:
        print(result.text)  # noqa: T201
        return
    trace = result.trace
    print_json(
        {
            "text": result.text,
            "prompt_tokens": trace.prompt_length,
            "generated_tokens": result.generated_tokens,
            "seed": result.seed,
            "tokens": result.tokens,
            "commits": [commit._asdict() for commit in trace.commits],
        }
    )


def parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--prompt-ids is {text!r}; give whole numbers separated by spaces.") from None


def settings(args: argparse.Namespace, bundle: Bundle, prompt: str | list[int]) -> GenerationConfig:
    """`--temperature` turns entropy sampling off; `--greedy` turns off all that is not the argmax."""
    from steerling_jax.generation_config import GenerationConfig

    fixed = args.temperature is not None or args.greedy
    return GenerationConfig(
        max_new_tokens=args.max_new_tokens or _room(bundle, prompt),
        steps=args.steps,
        temperature=0.0 if args.greedy else 1.2 if args.temperature is None else args.temperature,
        cfg_scale=args.cfg_scale,
        seed=args.seed,
        top_p=args.top_p,
        repetition_penalty=1.0 if args.greedy else args.repetition_penalty,
        use_entropy_sampling=not fixed,
        stop_tokens=tuple(_stop_id(stop, bundle) for stop in args.stop or ()) or None,
    )


def _room(bundle: Bundle, prompt: str | list[int]) -> int:
    """As many whole blocks as fit, up to about 128 tokens."""
    from steerling_jax.inference import encode

    size = bundle.config.diff_block_size
    room = min(128, bundle.config.block_size - len(encode(bundle, prompt, "The prompt")))
    return max(room // size, 1) * size


def _stop_id(stop: str, bundle: Bundle) -> int:
    if stop.isdecimal():
        return int(stop)
    ids = bundle.tokenizer.encode(stop)
    if len(ids) != 1:
        raise UserError(f"--stop {stop!r} is {len(ids)} tokens; give a text that is one token, or an id.")
    return ids[0]


def write(bundle: Bundle, prompt: str | list[int], config: GenerationConfig) -> Generation:
    """Generates with a progress display."""
    from steerling_jax.cli.console import progress
    from steerling_jax.decoding import BlockDone
    from steerling_jax.generation import stream

    with progress(unit="blocks") as bar:
        task = bar.add_task("writing", total=config.sampler_blocks(bundle.config))
        for event in stream(bundle, prompt, config, record_hidden=False):
            if not isinstance(event, BlockDone):
                return event
            bar.update(task, completed=event.number)
    raise AssertionError("a stream ends with a Generation")

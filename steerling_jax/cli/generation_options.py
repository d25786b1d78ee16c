"""The options of commands that write one text, and the writing itself, with its progress."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.decoding.generation import Generation, Prompt
    from steerling_jax.decoding.generation_config import GenerationConfig
    from steerling_jax.decoding.policies import Policies


def add_generation_options(parser: argparse.ArgumentParser) -> None:
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
    add("--repetition-penalty", type=float, metavar="X", help="default: 1.1; 1 for none")
    add("--cfg-scale", type=float, default=0.0, metavar="X", help="guidance (default: none)")
    add("--seed", type=int, metavar="N", help="the same text every time (default: another one)")
    add("--stop", action="append", metavar="TOKEN", help="an id, or a text that is one token; may be repeated")
    add("--drafts", type=int, default=1, metavar="K", help="canvases read in a pass: the same text in fewer passes")
    add("--commit-above", type=float, metavar="P", help="commit all that is so confident, 0 to 1: faster, another text")
    add("--greedy", action="store_true", help="always the likeliest token, without a repetition penalty")


def check_generation_options(args: argparse.Namespace) -> None:
    """What can be told without a model. Raises `UserError`."""
    for option in ("temperature", "repetition_penalty"):
        if args.greedy and getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise UserError(f"--greedy and --{name} contradict each other; give one of them.")
    if args.commit_above is not None and not 0 <= args.commit_above <= 1:
        raise UserError(f"--commit-above is {args.commit_above:g}; give a probability, from 0 to 1.")


def given_prompt(args: argparse.Namespace) -> str | list[int]:
    """TEXT, or the ids of --prompt-ids."""
    if (args.text is None) == (args.prompt_ids is None):
        raise UserError("Give a text to continue, or --prompt-ids (one of the two).")
    return args.text if args.prompt_ids is None else parse_ids(args.prompt_ids)


def parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--prompt-ids is {text!r}; give whole numbers separated by spaces.") from None


def settings(args: argparse.Namespace, bundle: Bundle, prompt: str | list[int]) -> GenerationConfig:
    """`--temperature` turns entropy sampling off; `--greedy` turns off all that is not the argmax."""
    from steerling_jax.bundle import encode
    from steerling_jax.decoding.generation_config import GenerationConfig

    length = args.max_new_tokens
    if length is None:
        length = GenerationConfig.default_length(bundle.config, len(encode(bundle, prompt, "The prompt")))
    fixed = args.temperature is not None or args.greedy
    usual = GenerationConfig.repetition_penalty
    penalty = usual if args.repetition_penalty is None else args.repetition_penalty
    return GenerationConfig(
        max_new_tokens=length,
        steps=args.steps,
        temperature=0.0 if args.greedy else 1.2 if args.temperature is None else args.temperature,
        cfg_scale=args.cfg_scale,
        seed=args.seed,
        top_p=args.top_p,
        repetition_penalty=1.0 if args.greedy else penalty,
        use_entropy_sampling=not fixed,
        stop_tokens=tuple(_stop_id(stop, bundle) for stop in args.stop or ()) or None,
    )


def policies(args: argparse.Namespace) -> Policies | None:
    if args.commit_above is None:
        return None
    import numpy as np

    from steerling_jax.decoding.policies import ConfidentEnough, Policies

    return Policies(schedule=ConfidentEnough(np.float32(args.commit_above)))


def _stop_id(stop: str, bundle: Bundle) -> int:
    if stop.isdecimal():
        return int(stop)
    ids = bundle.tokenizer.encode(stop)
    if len(ids) != 1:
        raise UserError(f"--stop {stop!r} is {len(ids)} tokens; give a text that is one token, or an id.")
    return ids[0]


def write(bundle: Bundle, prompt: Prompt, *, drafts: int = 1, record_hidden: bool = False) -> Generation:
    """Generates with a progress display."""
    from steerling_jax.cli.console import progress
    from steerling_jax.decoding.generation import Generation, stream
    from steerling_jax.decoding.request import BlockDone

    with progress(unit="blocks") as bar:
        task = bar.add_task("writing", total=prompt.config.sampler_blocks(bundle.config))
        events = stream(
            bundle,
            prompt.text_or_ids,
            prompt.config,
            prompt.steering,
            policies=prompt.policies,
            drafts=drafts,
            record_hidden=record_hidden,
        )
        for event in events:
            if isinstance(event, Generation):
                return event
            if isinstance(event, BlockDone):
                bar.update(task, completed=event.number)
    raise AssertionError("a stream ends with a Generation")

"""The options of commands that generate one text, and the generation itself with a progress bar."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError
from steerling_jax.io.text_files import decode_text

if TYPE_CHECKING:
    from steerling_jax.bundle import Bundle
    from steerling_jax.decoding.generation import Generation, Prompt
    from steerling_jax.decoding.generation_config import GenerationConfig
    from steerling_jax.decoding.policies import Policies
    from steerling_jax.steering.rules import Rule


_PROGRESS_STEPS = 8  # tokens of an autoregressive model between two updates of the progress bar


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `make_prompt` reads. `GenerationConfig` checks the ranges of its own fields."""
    add = parser.add_argument
    add("text", nargs="?", metavar="TEXT", help="the text to continue; - reads it from standard input")
    add("--prompt-ids", metavar="IDS", help='token ids in place of TEXT, for example "5 17 4"')
    add_model_option(parser)
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="most tokens of the text (default: what fits in the context, up to 128)",
    )
    add("--steps", type=int, metavar="N", help="denoising steps (default: one for each token)")
    add(
        "--temperature",
        type=float,
        metavar="X",
        help="a fixed temperature (default: set by each position's entropy; 1 for autoregressive models)",
    )
    add("--top-p", type=float, metavar="X", help="probability mass of the nucleus (default: 0.8; 1 for these models)")
    add("--top-k", type=int, metavar="K", help="draw among the K most likely tokens only (default: all)")
    add("--repetition-penalty", type=float, metavar="X", help="1 turns it off (default: 1.1; 1 for these models)")
    add("--cfg-scale", type=float, default=0.0, metavar="X", help="classifier-free guidance (default: off)")
    add("--seed", type=int, metavar="N", help="random seed, for a reproducible text (default: a new one each time)")
    add("--stop", action="append", metavar="TOKEN", help="stop at this id, or text of one token; can be repeated")
    add("--drafts", type=int, default=1, metavar="K", help="canvases in a pass: the same text in fewer passes")
    add(
        "--commit-above",
        type=number_in_range(float, 0.0, 1.0),
        metavar="P",
        help="commit every token with a probability above P: fewer passes, but a different text",
    )
    add("--chat", action="store_true", help="TEXT is a message to a chat model: apply the model's chat template")
    add("--greedy", action="store_true", help="always choose the most likely token, without a repetition penalty")


def check_generation_options(args: argparse.Namespace) -> None:
    """Raises `UserError` for options that contradict each other."""
    for option in ("temperature", "repetition_penalty"):
        if args.greedy and getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise UserError(f"--greedy and --{name} contradict each other; give one of them.")


def read_standard_input(args: argparse.Namespace) -> None:
    """Puts what standard input holds in the place of the text `-`, so that prompts can be piped. Raises `UserError` if
    it is not UTF-8 or empty."""
    if args.text != "-":
        return
    args.text = decode_text(sys.stdin.buffer.read(), "Standard input")
    if not args.text.strip():
        raise UserError("Standard input is empty; write the text to continue to it, or give it in place of -.")


def prompt_text_or_ids(args: argparse.Namespace) -> str | list[int]:
    """TEXT, or the ids of --prompt-ids. Raises `UserError` unless exactly one of them is given."""
    if (args.text is None) == (args.prompt_ids is None):
        raise UserError("Give a text to continue, or --prompt-ids (one of the two).")
    if args.prompt_ids is None:
        return args.text
    try:
        return [int(word) for word in args.prompt_ids.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--prompt-ids is {args.prompt_ids!r}; give whole numbers separated by spaces.") from None


def _chat_prompt(args: argparse.Namespace, bundle: Bundle) -> list[int]:
    """The ids of a conversation of one message, TEXT, up to the start of the answer."""
    from steerling_jax.io.tokenizers.byte_table import ByteTable

    if not args.text or args.prompt_ids is not None:
        raise UserError("--chat needs a message: give it as TEXT, without --prompt-ids.")
    tokenizer = bundle.tokenizer
    if not isinstance(tokenizer, ByteTable) or not tokenizer.has_chat_template:
        raise UserError(f"{bundle.name} has no chat template: leave out --chat.")
    return tokenizer.chat_prompt([{"role": "user", "content": args.text}])


def make_prompt(args: argparse.Namespace, bundle: Bundle, rules: tuple[Rule, ...]) -> Prompt:
    """What to generate: the encoded prompt with the settings of all options. Raises `UserError` for invalid values."""
    from steerling_jax.bundle import encode
    from steerling_jax.cli.steering_options import resolve_options, with_names
    from steerling_jax.decoding.generation import Prompt

    prompt = _chat_prompt(args, bundle) if args.chat else prompt_text_or_ids(args)
    ids = encode(bundle, prompt, "The prompt").tolist()
    config = _generation_config(args, bundle, len(ids))
    return Prompt(ids, config, resolve_options(rules, with_names(bundle, args)), _policies(args))


def generate_with_progress(
    bundle: Bundle, prompt: Prompt, *, drafts: int = 1, record_hidden: bool = False
) -> Generation:
    """`sj.generate` with a progress bar on standard error."""
    from steerling_jax.cli.console import progress_bar
    from steerling_jax.decoding.generation import Generation, stream
    from steerling_jax.decoding.request import BlockDone, Committed
    from steerling_jax.models.steerling.config import ModelConfig

    diffusion = isinstance(bundle.config, ModelConfig)
    total = prompt.config.sampler_blocks(bundle.config) if diffusion else prompt.config.max_new_tokens
    with progress_bar(unit="blocks" if diffusion else "tokens") as bar:
        task = bar.add_task("writing", total=total)
        events = stream(
            bundle,
            prompt.text_or_ids,
            prompt.config,
            prompt.steering,
            policies=prompt.policies,
            drafts=drafts,
            record_hidden=record_hidden,
            steps=None if diffusion else _PROGRESS_STEPS,
            edits=prompt.edits,
        )
        for event in events:
            if isinstance(event, Generation):
                return event
            if isinstance(event, Committed):
                bar.advance(task, len(event.commits))
            if diffusion and isinstance(event, BlockDone):
                bar.update(task, completed=event.number)
    raise AssertionError("a stream ends with a Generation")


def note_seed(args: argparse.Namespace, seed: int) -> None:
    """A note of the seed if none was given, so that the text can be written again; greedy texts do not depend on it."""
    from steerling_jax.cli.console import note

    if args.seed is None and not args.greedy:
        note(f"The seed was {seed}; --seed {seed} writes the same text again.")


def _generation_config(args: argparse.Namespace, bundle: Bundle, prompt_length: int) -> GenerationConfig:
    """--temperature turns entropy sampling off; --greedy turns off everything except the argmax."""
    from steerling_jax.decoding.generation_config import GenerationConfig

    length = args.max_new_tokens
    if length is None:
        length = GenerationConfig.default_length(bundle.config, prompt_length)
    values = {name: getattr(args, name) for name in ("steps", "temperature", "top_p", "top_k", "repetition_penalty")}
    if args.greedy:
        values |= {"temperature": 0.0, "repetition_penalty": 1.0}
    if values["temperature"] is not None:
        values["use_entropy_sampling"] = False
    # Options that were not given are not given to the configuration either: their defaults depend on the model.
    given = {name: value for name, value in values.items() if value is not None}
    stops = tuple(_stop_id(stop, bundle) for stop in args.stop or ()) or None
    return GenerationConfig(max_new_tokens=length, cfg_scale=args.cfg_scale, seed=args.seed, stop_tokens=stops, **given)


def _policies(args: argparse.Namespace) -> Policies | None:
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

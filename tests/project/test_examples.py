"""The examples of `--help` and of the documentation: their options exist, and the texts that they write are worth
reading."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import steerling_jax as sj
from steerling_jax.bundle import Bundle
from steerling_jax.cli import main
from steerling_jax.cli.generation_options import make_prompt
from steerling_jax.cli.steering_options import parse_steering_options
from steerling_jax.decoding.generation import Prompt
from steerling_jax.evaluation.text_metrics import repeated
from tests.worlds.paths import REPOSITORY

COMMANDS = main.commands()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "README.ko.md", *sorted((REPOSITORY / "docs/guide").glob("*.md"))]
TEXT_COMMANDS = ("generate", "trace", "demo")
# Options of examples that need more than the bundled model. Their other options are checked all the same.
NEED_FILES = ("input", "source", "policy", "prompt_ids", "continuation", "index", "autoencoder", "autoencoders")
# At most this share of the 3-grams of a text may occur more than once. Without steering, the bundled model's texts have
# 0.09 on average, and a text that repeats one word or a line of dashes more than 0.5.
MOST_REPEATED = 0.2


def command_lines(text: str) -> Iterator[str]:
    """The command lines in a help text or in the code blocks of a page, without a prompt and joined where continued."""
    joined = re.sub(r" *\\\n *", " ", text)
    for line in re.findall(r"^ *(?:\$ )?(steerling .+)$", joined, re.MULTILINE):
        yield line.strip()


def page_lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```|^((?:    .*\n)+)", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for text in block for line in command_lines(text)]


EXAMPLES = {
    "--help": list(command_lines(main.EXAMPLES)),
    **{name: list(command_lines(main.load_command(name, COMMANDS).HELP)) for name in COMMANDS},
    **{
        f"{name} {one}": list(command_lines(importlib.import_module(path).HELP))
        for name in COMMANDS
        for one, path in getattr(main.load_command(name, COMMANDS), "SUBCOMMANDS", {}).items()
    },
    **{page.name: lines for page in PAGES if (lines := page_lines(page))},
}


def parse(line: str) -> tuple[str, argparse.Namespace]:
    """The command of a line and its arguments; "" for `steerling --help`, `steerling COMMAND --help` and the like."""
    name, *words = shlex.split(line.replace("`", "'"), comments=True)[1:]
    if name not in COMMANDS or "--help" in words:
        return "", argparse.Namespace()
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "&")), None)]
    command, module, words = main.resolve([name, *words], COMMANDS)
    return name, main.command_parser(command, module).parse_command(words)


@pytest.mark.parametrize("place", EXAMPLES)
def test_options_of_examples_exist(place: str):
    assert EXAMPLES[place] or place not in COMMANDS
    for line in EXAMPLES[place]:
        name, _ = parse(line)  # raises for an option that does not exist
        assert name in (*COMMANDS, "")


def texts_to_write() -> dict[str, argparse.Namespace]:
    """The examples of the help texts, README and the first page that write a text with the bundled model."""
    shown = [*("--help", *TEXT_COMMANDS), "README.md", "first-steps.md"]
    examples = {}
    for line in (line for place in shown for line in EXAMPLES[place]):
        name, args = parse(line)
        if name not in TEXT_COMMANDS or str(getattr(args, "model", None)).endswith(".gguf"):
            continue
        if all(getattr(args, option, None) in (None, []) for option in NEED_FILES):
            examples[re.split(r" +#", line)[0]] = args
    return examples


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return sj.load()


def prompt_of(bundle: Bundle, args: argparse.Namespace) -> Prompt:
    if hasattr(args, "temperature"):
        return make_prompt(args, bundle, parse_steering_options(args))
    return Prompt(args.text, sj.GenerationConfig(max_new_tokens=args.max_new_tokens, seed=args.seed))  # the demo


def test_examples_write_texts_that_hardly_repeat_themselves(bundle: Bundle):
    examples = texts_to_write()
    assert len(examples) >= 8
    for line, args in examples.items():
        assert args.seed is not None, f"{line}: give --seed, so that this test writes what a reader sees"
        prompt = prompt_of(bundle, args)
        result = sj.generate(bundle, prompt.text_or_ids, prompt.config, steering=prompt.steering)
        share = repeated(result.trace.tokens[result.trace.prompt_length :].tolist(), 3)
        message = f"{line}: {share:.0%} of the 3-grams of {result.text!r} are repeated; choose another prompt or seed"
        assert share is not None, line
        assert share <= MOST_REPEATED, message
        assert "\N{REPLACEMENT CHARACTER}" not in result.text, line


def test_steering_examples_write_about_their_concept(bundle: Bundle):
    """The examples of `--amplify` contain the concept's first word more often than the same text without steering."""
    shown = {line: args for line, args in texts_to_write().items() if getattr(args, "amplify", None)}
    assert shown
    for line, args in shown.items():
        counts = []
        for amplify in ([], args.amplify):
            prompt = prompt_of(bundle, argparse.Namespace(**(vars(args) | {"amplify": amplify})))
            text = sj.generate(bundle, prompt.text_or_ids, prompt.config, steering=prompt.steering).text
            counts.append(text.lower().count(args.amplify[0].split("=")[0].split()[0].lower().removesuffix("s")))
        assert counts[1] > counts[0], f"{line}: {counts}"

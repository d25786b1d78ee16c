"""The `steerling` command: finds a subcommand by name, imports only that one, tells errors as sentences.

A subcommand is a module, registered under the entry-point group `steerling.commands` as `name = module`, with

    HELP: str                    the summary, one line; what follows a blank line (examples) is shown below the options
    configure(parser) -> None    adds arguments to an `argparse.ArgumentParser`
    run(args) -> int | None      does the work; None means 0

The module itself imports nothing heavy: JAX and all that needs it are imported inside `run`, so that
`steerling CMD --help` is quick too. Bad input raises `steerling_jax.errors.UserError` (exit code 2, one sentence, no
traceback). Results go to standard output, everything else (progress, notes) to standard error; see
`steerling_jax.cli.console`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from types import ModuleType
from typing import NoReturn

from steerling_jax.errors import UserError

GROUP = "steerling.commands"

# The first line of each command's HELP, so that `steerling --help` imports no command; a test holds the two equal.
SUMMARIES = {
    "demo": "Write a continuation and show, chunk by chunk, the concepts that it came from.",
    "trace": "Show where a text came from: concepts, prompt tokens and training data, chunk by chunk.",
    "generate": "Continue a text.",
    "serve": "Answer requests over HTTP, in the protocol of OpenAI's clients.",
    "concepts": "Find a model's concepts by name, with the words that each one promotes.",
    "neighbourhood": "Show what a concept is about: tokens, chunks of a corpus, near concepts, a name.",
    "info": "Show what a model is: its configuration, parameters and tokenizer.",
    "prepare": "Make a corpus store from documents: tokens, chunks, concept labels.",
    "train": "Train a model from a config; resumes exactly where it stopped.",
    "compile": "Compile a config for real TPUs with none present: memory, FLOPs, what is exchanged, does it fit.",
    "evaluate": "Measure a model on held-out documents.",
    "lm-eval": "Run tasks of the lm-evaluation-harness.",
    "faithfulness": "Measure whether attribution is true: inputs, concepts, training data, bad outputs.",
    "steer-eval": "Measure what steering by concepts does, beside random directions and prompting.",
    "index": "Index a corpus store for a model, so that training data behind a text can be found.",
    "search": "Find training data close to a text, in an index made by `steerling index`.",
    "import": "Turn a model in the published layout into a checkpoint.",
    "export": "Write a checkpoint as a model in the published layout.",
}

EXAMPLES = """\
examples:
  steerling demo
  steerling generate "The garden in spring" --max-new-tokens 64
  steerling COMMAND --help
"""


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.rstrip('.')}; see `{self.prog} --help`.")


def commands() -> dict[str, EntryPoint]:
    """The registered subcommands, ours first and in the order of `SUMMARIES`."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    ours = {name: found[name] for name in SUMMARIES if name in found}
    return ours | dict(sorted(found.items()))


def front_parser(found: dict[str, EntryPoint]) -> Parser:
    """The parser of `steerling` itself, for when no subcommand is named."""
    width = max((len(name) for name in found), default=0)
    rows = [f"  {name:<{width}}  {SUMMARIES.get(name, f'({point.value})')}" for name, point in found.items()]
    parser = Parser(
        prog="steerling",
        usage="steerling [--help] [--version] COMMAND ...",
        description="An interpretable diffusion language model: train it, write with it, see where a word came from.",
        epilog="\n".join(["commands:", *rows, "", EXAMPLES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steerling-jax {version('steerling-jax')}")
    return parser


def load_command(name: str, found: dict[str, EntryPoint]) -> ModuleType:
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean `steerling {near[0]}`?" if near else "`steerling --help` lists the commands."
        raise UserError(f"There is no command {name!r}; {hint}")
    point = found[name]
    try:
        return importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        if error.name is None or not point.module.startswith(error.name):
            raise
        raise UserError(f"`steerling {name}` needs the module {point.module}, which is not installed.") from error


def command_parser(name: str, module: ModuleType) -> Parser:
    summary, _, examples = module.HELP.strip().partition("\n\n")
    parser = Parser(
        prog=f"steerling {name}",
        description=summary,
        epilog=examples or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    return parser


def dispatch(argv: Sequence[str]) -> int:
    found = commands()
    if not argv or argv[0].startswith("-"):
        parser = front_parser(found)
        parser.parse_args(argv)
        parser.print_help()
        return 0
    name, *rest = argv
    module = load_command(name, found)
    # Intermixed, so that a text may stand before, after or between the options.
    args = command_parser(name, module).parse_intermixed_args(rest)
    return module.run(args) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and gives the exit code: 2 for bad input, 130 if interrupted, 141 if the reader left."""
    try:
        try:
            code = dispatch(sys.argv[1:] if argv is None else argv)
        except SystemExit as leaving:  # argparse, after --help and --version
            code = leaving.code if isinstance(leaving.code, int) else 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, `less`) has left. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


if __name__ == "__main__":
    sys.exit(main())

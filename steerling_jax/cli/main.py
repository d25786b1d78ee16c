"""The `steerling` command: imports the subcommand that is named, and only that one, and runs it.

A subcommand is a module, registered in the entry-point group `steerling.commands` as `name = module`, with

    HELP: str                    a summary of one line; after a blank line, text that is shown below the options
    configure(parser) -> None    adds arguments to an `argparse.ArgumentParser`
    run(args) -> int | None      runs the command; returns the exit code, None for 0
    COMPILE_CACHE = False        optional: the command does not store compiled programs in the user's cache folder

A group of commands, `steerling GROUP NAME`, has HELP and, in place of the functions, `SUBCOMMANDS`, the modules of its
commands by name.

The module imports nothing heavy at the top: JAX and everything that needs it are imported in `run`, so that
`steerling COMMAND --help` is quick. Invalid input raises `steerling_jax.errors.UserError`, which is printed as one
sentence without a traceback (exit code 2). Results go to standard output, notes and progress bars to standard error;
see `steerling_jax.cli.console`. Characters that the terminal's encoding lacks are printed as escapes.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from types import ModuleType
from typing import NoReturn

from steerling_jax.cli.compile_cache import ignore_damaged_entries, use_compile_cache
from steerling_jax.errors import UserError

GROUP = "steerling.commands"

# Copies of the first line of each command's HELP, so that `steerling --help` imports no command. A test compares them.
SUMMARIES = {
    "explore": "Open a page in the browser that writes texts, explains any words of them, and compares steered ones.",
    "demo": "Generate a continuation and show, chunk by chunk, the concepts that it came from.",
    "trace": "Explain a text chunk by chunk: the concepts, prompt tokens and training data behind it.",
    "verify": "Compute the figures of a recorded trace again, and say how far they agree.",
    "generate": "Continue a text, or every text of a file.",
    "serve": "Serve a model over HTTP, in the protocol of OpenAI's clients.",
    "concepts": "Find a model's concepts by name, with the tokens that each one promotes.",
    "neighbourhood": "Describe a concept: promoted tokens, chunks of a corpus, near concepts, an automatic name.",
    "name": "Name discovered concepts by words that predict where they are active, scored on held-out documents.",
    "info": "Show a model's configuration, parameters and tokenizer.",
    "prepare": "Make a corpus store from documents: tokens, chunks, concept labels.",
    "sae": "Use features of sparse autoencoders: compare benchmarks, classify texts, cover features, find those of "
    "languages.",
    "attach": "Give a model a bottleneck of k features, of which every logit is the sum; resumes exactly.",
    "features": "Show features: those behind a text's tokens, what one is about, those that tell texts apart, texts "
    "with the same ones.",
    "train": "Train a model from a config; resumes an interrupted run exactly.",
    "compile": "Compile a config or a model for TPUs without having one: memory, FLOPs, collectives, whether it fits.",
    "evaluate": "Evaluate a model on held-out documents.",
    "lm-eval": "Run tasks of the lm-evaluation-harness.",
    "faithfulness": "Measure whether attributions are correct: inputs, concepts, training data, bad outputs.",
    "steer-eval": "Measure the effect of steering by concepts, compared with random directions and prompts.",
    "calibrate": "Measure for each concept the strength of steering that costs at most so many nats a token.",
    "index": "Index a corpus store for a model, to find the training data behind a text.",
    "search": "Find training data close to a text, in an index made by `steerling index`.",
    "import": "Convert a model in the published layout to a checkpoint.",
    "export": "Convert a checkpoint to the published layout, or a run of a decoder to a Hugging Face folder.",
}

EXAMPLES = """\
examples:
  steerling generate "Return True if the file" --max-new-tokens 32 --seed 0
  steerling trace "Return True if the file" --max-new-tokens 32 --seed 0 --html page.html
  steerling demo
  steerling COMMAND --help
"""


class PositionalArgument(str):
    """An argument after `--`, which is positional even where it begins with a dash."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` in place of printing its usage and exiting."""

    def parse_command(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses arguments in which positional ones can come before, after or between the options; those after `--` are
        positional."""
        arguments = list(arguments)
        if "--" in arguments:
            end = arguments.index("--")
            arguments[end:] = map(PositionalArgument, arguments[end + 1 :])
        args = self.parse_intermixed_args(arguments)
        for name, value in vars(args).items():  # plain strings again
            if isinstance(value, PositionalArgument):
                setattr(args, name, str(value))
            elif isinstance(value, list):
                setattr(args, name, [str(one) if isinstance(one, PositionalArgument) else one for one in value])
        return args

    def _parse_optional(self, arg_string: str):
        # argparse parses intermixed arguments in two passes and forgets `--` between them, so `--` itself cannot do
        # this.
        return None if isinstance(arg_string, PositionalArgument) else super()._parse_optional(arg_string)

    def error(self, message: str) -> NoReturn:
        # argparse writes "argument --rows: …". The types of `cli.arguments` continue it: "--rows is 0, but …".
        message = re.sub(r"^argument ([^:]+): is ", r"\1 is ", message)
        unknown = message.removeprefix("unrecognized arguments: ") if message.startswith("unrecognized") else ""
        near = [name for word in unknown.split() for name in self._near_options(word)]
        if near:
            raise UserError(f"{message}; did you mean {' and '.join(near)}? `{self.prog} --help` lists the options.")
        raise UserError(f"{message.rstrip('.')}; see `{self.prog} --help`.")

    def _near_options(self, word: str) -> list[str]:
        """The option that a word is a misspelling of, if there is one."""
        name = word.partition("=")[0]
        return difflib.get_close_matches(name, self._option_string_actions, n=1) if name.startswith("--") else []


def commands() -> dict[str, EntryPoint]:
    """The registered subcommands: this package's in the order of `SUMMARIES`, then those of other packages."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    return {name: points[name] for name in SUMMARIES if name in points} | dict(sorted(points.items()))


def top_level_parser(points: dict[str, EntryPoint]) -> Parser:
    """The parser of `steerling` without a subcommand."""
    width = max((len(name) for name in points), default=0)
    rows = [f"  {name:<{width}}  {SUMMARIES.get(name, f'({point.value})')}" for name, point in points.items()]
    parser = Parser(
        prog="steerling",
        usage="steerling [--help] [--version] COMMAND ...",
        description="An interpretable diffusion language model: train it, generate text, see the origin of each word.",
        epilog="\n".join(["commands:", *rows, "", EXAMPLES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steerling-jax {version('steerling-jax')}")
    return parser


def load_command(name: str, points: dict[str, EntryPoint]) -> ModuleType:
    """Imports a subcommand's module. Raises `UserError` where there is none, or it is not installed."""
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f"did you mean `steerling {near[0]}`?" if near else "`steerling --help` lists the commands."
        raise UserError(f"There is no command {name!r}; {hint}")
    point = points[name]
    try:
        return importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        # Only where the module itself or its package is missing: an import that fails inside it is a bug.
        if error.name is None or not point.module.startswith(error.name):
            raise
        raise UserError(f"`steerling {name}` needs the module {point.module}, which is not installed.") from error


def command_parser(name: str, module: ModuleType) -> Parser:
    """The parser of a subcommand."""
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


def resolve(words: Sequence[str], points: dict[str, EntryPoint]) -> tuple[str, ModuleType, list[str]]:
    """The name and module of the command that a line's words begin with, and the words that follow.

    For a group without one of its commands, the module is that of the group. Raises `UserError` for an unknown command.
    """
    name, *rest = words
    module = load_command(name, points)
    subcommands = getattr(module, "SUBCOMMANDS", None)
    if subcommands is None or not rest or rest[0].startswith("-"):
        return name, module, rest
    if rest[0] not in subcommands:
        near = difflib.get_close_matches(rest[0], subcommands, n=1)
        hint = f"did you mean `steerling {name} {near[0]}`?" if near else f"these are: {', '.join(subcommands)}."
        raise UserError(f"`steerling {name}` has no command {rest[0]!r}; {hint}")
    return f"{name} {rest[0]}", importlib.import_module(subcommands[rest[0]]), rest[1:]


def group_parser(name: str, module: ModuleType) -> Parser:
    """The parser of a group without one of its commands, which has no options but --help."""
    summary, _, examples = module.HELP.strip().partition("\n\n")
    width = max(map(len, module.SUBCOMMANDS))
    summaries = {one: importlib.import_module(path).HELP.strip().partition("\n")[0]
                 for one, path in module.SUBCOMMANDS.items()}  # fmt: skip
    return Parser(
        prog=f"steerling {name}",
        usage=f"steerling {name} [--help] COMMAND ...",
        description=summary,
        epilog="\n".join(
            ["commands:", *(f"  {one:<{width}}  {text}" for one, text in summaries.items()), "", examples]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def dispatch(argv: Sequence[str]) -> int:
    """Runs the subcommand that `argv` names and returns its exit code."""
    points = commands()
    if not argv or argv[0].startswith("-"):
        parser = top_level_parser(points)
        parser.parse_args(argv)
        parser.print_help()
        return 0
    name, module, rest = resolve(argv, points)
    if hasattr(module, "SUBCOMMANDS"):
        parser = group_parser(name, module)
        parser.parse_args(rest)
        parser.print_help()
        return 0
    args = command_parser(name, module).parse_command(rest)
    ignore_damaged_entries()
    if getattr(module, "COMPILE_CACHE", True):
        use_compile_cache()
    return module.run(args) or 0


def accept_all_characters() -> None:
    """Makes standard output and standard error escape the characters that their encoding lacks; if one is closed, it
    discards what is written.

    The default raises UnicodeEncodeError, in terminals that are not UTF-8 and for lone surrogates anywhere: a text that
    took minutes to generate would be lost while it is printed. Rich's consoles write to the same streams.
    """
    # Python has None for a stream that the shell closed (`>&-`), which cannot be written to or flushed.
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 2 for invalid input, 130 if interrupted, 141 for a broken
    pipe."""
    accept_all_characters()
    try:
        try:
            code = dispatch(sys.argv[1:] if argv is None else argv)
        except SystemExit as error:  # argparse, after --help and --version
            code = error.code if isinstance(error.code, int) else 0
        sys.stdout.flush()  # here, where a broken pipe is caught
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, `less`) has exited. Python flushes standard output once more at exit and would report the
        # broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


if __name__ == "__main__":
    sys.exit(main())

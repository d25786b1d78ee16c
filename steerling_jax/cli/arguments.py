"""Arguments and argument types that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


_MODEL_HELP = "a folder, a checkpoint, the name of a bundled model or a Hub id (default: the bundled model)"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the positional MODEL, which `sj.load` takes; None means the bundled model."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=_MODEL_HELP)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds --model, for commands whose positional argument is something else."""
    parser.add_argument("--model", metavar="MODEL", help=_MODEL_HELP)


def add_address_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Adds --host, and --port with the default `port`, for commands that serve."""
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, this machine only)",
    )
    add(
        "--port",
        type=number_in_range(int, 0, 2**16 - 1),
        default=port,
        metavar="N",
        help="port to listen on; 0 chooses a free one (default: %(default)s)",
    )


def number_in_range(kind: type[Number], minimum: Number, maximum: Number | None = None) -> Callable[[str], Number]:
    """An argparse type for numbers: `add_argument("--rows", type=number_in_range(int, 1))`.

    kind: `int` or `float`. Both bounds are inclusive; without `maximum`, any larger number is valid. NaN never is.
    """
    noun = "a whole number" if kind is int else "a number"
    bounds = f"of at least {minimum:.10g}" if maximum is None else f"from {minimum:.10g} to {maximum:.10g}"

    def parse(text: str) -> Number:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}, but it must be {noun} {bounds}") from None
        # Written so that NaN, for which every comparison is false, is rejected too.
        if not (minimum <= number and (maximum is None or number <= maximum)):
            raise argparse.ArgumentTypeError(f"is {text}, but it must be {noun} {bounds}")
        return number

    return parse


def add_reference_option(add: Callable[..., Any]) -> None:
    """Adds --reference, with which `steerling demo` and `steerling trace` choose what they split into shares."""
    add(
        "--reference",
        choices=("vocabulary", "model", "raw"),
        default="vocabulary",
        help="what is split into shares: each logit minus the mean of all tokens' logits (vocabulary), the "
        "log-probability (model), or the logit itself, as published (raw); default: %(default)s",
    )

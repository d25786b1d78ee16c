"""Costs of a compiled program, from its optimised HLO text. `program_costs` is the interface; the other modules of this
folder parse and count, and nothing outside imports them.

    parser               the text to computations and instructions
    device_groups        which devices take part in a collective
    instruction_costs    FLOPs and memory traffic of single instructions
    loops                how often the body of a loop runs
    counter              sums over the program
    costs                the result

HLO text is not a stable format, but XLA gives these figures in no other way: `Compiled.cost_analysis()` counts the body
of a loop once, however often it runs, and the layers of a model are a loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import jax

from steerling_jax.errors import UserError, error_summary
from steerling_jax.train.aot.hlo.costs import Costs, Traffic
from steerling_jax.train.aot.hlo.counter import count_costs
from steerling_jax.train.aot.hlo.parser import parse_module

__all__ = ["Costs", "Traffic", "program_costs"]

WRITTEN_FOR = "JAX 0.10.2 and libtpu 0.0.42.1"


def program_costs(text: str, slices: Sequence[int] = (0,)) -> Costs:
    """Costs of one run of a program on one device.

    text: optimised HLO, as `jax.stages.Compiled.as_text()` returns it.
    slices: the number of the pod slice of each device, in the order of the mesh.

    Raises `UserError` where the text cannot be parsed, as of an XLA newer than this parser; the text is then in a file
    that the message names, for a bug report.
    """
    try:
        return count_costs(parse_module(text), slices)
    except Exception as error:  # what an unforeseen syntax leads to: a missing name, attribute, axis or parenthesis
        with tempfile.NamedTemporaryFile(
            "w", prefix="steerling-hlo-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        raise UserError(
            f"The text of the compiled program cannot be parsed ({type(error).__name__}: {error_summary(error)}): the "
            f"parser was written for {WRITTEN_FOR}, and this is JAX {jax.__version__}; install those versions, or "
            f"report it as a bug with the command and the file {file.name}, which holds the text."
        ) from error

"""Parses the text of a compiled program (optimised HLO): computations, their instructions, shapes and attributes.

Only as much of the language as counting needs. A program is a list of computations, and a computation is a list of
instructions, one a line:

    %name (p: f32[2]) -> f32[2] {
      %p = f32[2]{0} parameter(0)
      ROOT %n = f32[2]{0} negate(%p), metadata={…}
    }
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")  # dtype, dimensions, layout
_NO_DATA = frozenset({"token", "opaque"})
_WIDTH = re.compile(r"(?:s|u|f|bf|c)(\d+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """Shape and dtype of an array. space: the memory space; 0 is HBM, the others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without padding. Raises ValueError for an unknown dtype."""
        if self.dtype in _NO_DATA:
            return 0
        width = _WIDTH.match(self.dtype)
        if width is None and self.dtype != "pred":
            raise ValueError(f"unknown dtype {self.dtype!r}")
        bits = 8 if width is None else int(width.group(1))
        return -(-self.size * bits // 8)  # four-bit numbers are packed


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    shapes: of the result; the parts of a tuple in order, nested tuples flattened.
    operands: names of instructions of the same computation.
    argument: the text between the parentheses.
    attributes: the text after them.
    root: whether its result is the computation's.
    """

    name: str
    opcode: str
    shapes: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of `name=…`, up to the next comma or blank, with all of a `{…}`; None where there is none."""
        match = re.search(rf"(?:^|[ ,]){name}=(\{{(?:[^{{}}]|\{{[^}}]*\}})*\}}|[^,\s]+)", self.attributes)
        return match.group(1) if match else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        return [name for attribute in attributes for name in _NAME.findall(self.attribute(attribute) or "")]


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameter instructions by number."""
        return {int(one.argument): one for one in self.instructions if one.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """Instructions that have `name` as an operand."""
        return [one for one in self.instructions if name in one.operands]

    def operand_shapes(self, one: Instruction) -> list[tuple[Array, ...]]:
        return [self.by_name[name].shapes for name in one.operands if name in self.by_name]


@dataclass(frozen=True)
class Module:
    """A program. entry: the name of the computation that runs."""

    computations: dict[str, Computation]
    entry: str


def parse_module(text: str) -> Module:
    """Parses optimised HLO as `Compiled.as_text()` returns it. Raises ValueError where there is no entry computation or
    an instruction has another form."""
    computations: dict[str, Computation] = {}
    entry, name, body = "", "", []
    for line in text.splitlines():
        if not name:
            if header := _HEADER.match(line):
                name, body = header.group(2), []
                entry = name if header.group(1) else entry
        elif line == "}" or line.startswith("}, "):  # attributes follow where it runs on a SparseCore
            computations[name] = Computation(name, tuple(body))
            name = ""
        elif " = " in line:
            body.append(_parse_instruction(line.strip()))
    if not entry:
        raise ValueError("it has no ENTRY computation")
    return Module(computations, entry)


def _parse_instruction(line: str) -> Instruction:
    """`[ROOT] %name = SHAPE opcode(ARGUMENT), ATTRIBUTES`; the shape of a tuple is in parentheses and has blanks."""
    root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing_parenthesis(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing_parenthesis(rest, len(opcode))
    argument = rest[len(opcode) + 1 : end]
    return Instruction(
        name.removeprefix("%"),
        opcode,
        parse_shapes(shape),
        tuple(_NAME.findall(argument)),
        argument,
        rest[end + 1 :].lstrip(", "),
        root,
    )


def parse_shapes(text: str) -> tuple[Array, ...]:
    """The array of `f32[2,3]{1,0}`, or the arrays of a tuple, however nested."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.replace("<=", "").split(",") if n), _memory_space(layout))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _memory_space(layout: str) -> int:
    match = _SPACE.search(layout)
    return int(match.group(1)) if match else 0


def _closing_parenthesis(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in _PARENTHESIS.finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")

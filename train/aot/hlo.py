"""Reads the text of a compiled program (optimised HLO): its computations, their instructions, shapes and attributes.

Only as much of the language as counting needs; `hlo_costs` does the counting.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "f4e2m1fn": 4}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_WIDTH = re.compile(r"(?:s|u|f|bf|c)(\d+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """Of a shape. space: 0 is the device's main memory (HBM), others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without padding."""
        width = _WIDTH.match(self.dtype)
        bits = _BITS.get(self.dtype, int(width.group(1)) if width else 0)
        return -(-self.size * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """shapes: of the result, a tuple's parts in order. operands: names, within the same computation. argument: the text
    between the parentheses. rest: the attributes' text."""

    name: str
    opcode: str
    shapes: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    rest: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The text of `name=…` up to the next comma or blank, `{…}` whole."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{(?:[^{{}}]|\{{[^}}]*\}})*\}}|[^,\s]+)", self.rest)
        return found.group(1) if found else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that these attributes name."""
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
        return {int(one.argument): one for one in self.instructions if one.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if name in one.operands]

    def operand_shapes(self, one: Instruction) -> list[tuple[Array, ...]]:
        return [self.by_name[name].shapes for name in one.operands if name in self.by_name]


@dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str


def read_module(text: str) -> Module:
    """The module in `text`, as `Compiled.as_text()` gives it. ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry, name, body = "", "", []
    for line in text.splitlines():
        if not name:
            if header := _HEADER.match(line):
                name, body = header.group(2), []
                entry = name if header.group(1) else entry
        elif line == "}" or line.startswith("}, "):  # what runs on a sparse core says so behind it
            computations[name] = Computation(name, tuple(body))
            name = ""
        elif " = " in line:
            body.append(_instruction(line.strip()))
    if not entry:
        raise ValueError("This is no compiled module: it has no ENTRY computation.")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : end]
    return Instruction(
        name.removeprefix("%"),
        opcode,
        read_shapes(shape),
        tuple(_NAME.findall(argument)),
        argument,
        rest[end + 1 :].lstrip(", "),
        root,
    )


def read_shapes(text: str) -> tuple[Array, ...]:
    """`f32[2,3]{1,0}`, or the parts of a tuple however nested."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.replace("<=", "").split(",") if n), _space(layout))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _space(layout: str) -> int:
    found = _SPACE.search(layout)
    return int(found.group(1)) if found else 0


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _PARENTHESIS.finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"This line of a compiled module has no end: {text[:80]}")

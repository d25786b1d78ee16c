"""What single instructions of a compiled program cost: FLOPs of products, bytes of main memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.aot.hlo import Array, Computation, Instruction

_NO_TRAFFIC = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "optimization-barrier",
        "partition-id",
        "replica-id",
        "add-dependency",
        "async-start",
        "async-update",
        "iota",
    }
)
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+),")  # a part of the result, the operand that it is
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
_REPEATING = frozenset({"all-gather-start", "collective-permute-start", "send"})  # what was given, before what is made


def dot_flops(one: Instruction, inside: Computation) -> float:
    left = inside.by_name[one.operands[0]].shapes[0]
    over = [int(axis) for axis in re.findall(r"\d+", one.attribute("lhs_contracting_dims") or "")]
    return 2.0 * one.shapes[0].size * float(np.prod([left.dims[axis] for axis in over]))


def convolution_flops(one: Instruction, inside: Computation) -> float:
    """On a TPU a product is a convolution, whose batch dimensions are spatial ones with holes or padding between: only
    the pairs that meet are counted."""
    left, right = (inside.by_name[name].shapes[0] for name in one.operands[:2])
    (out,) = one.shapes[:1]
    lhs, rhs, result = re.findall(r"[0-9a-z?]+", (one.attribute("dim_labels") or "").replace("->", "_"))
    pairs = 1
    for number, axis in enumerate(sorted(label for label in lhs if label.isdigit())):
        sizes = left.dims[lhs.index(axis)], right.dims[rhs.index(axis)], out.dims[result.index(axis)]
        pairs *= _meeting(*sizes, **{name: values[number] for name, values in _window(one).items()})
    # The kernel's input features are those of one group, and the result's features are those of all groups.
    samples = out.dims[result.index("b")]
    return 2.0 * pairs * samples * out.dims[result.index("f")] * right.dims[rhs.index("i")]


def _window(one: Instruction) -> dict[str, list[int]]:
    """stride, pad (before), lhs_dilate and rhs_dilate of each spatial axis, where given."""
    text = (one.attribute("window") or "{}")[1:-1]
    parts = dict(part.split("=", 1) for part in text.split())
    names = ("stride", "pad", "lhs_dilate", "rhs_dilate")
    return {name: [int(n.split("_")[0]) for n in parts[name].split("x")] for name in names if name in parts}


@functools.cache
def _meeting(
    size: int, kernel: int, out: int, *, stride: int = 1, pad: int = 0, lhs_dilate: int = 1, rhs_dilate: int = 1
) -> int:
    """Pairs of a result's position and a kernel's position at which there is an input."""
    at = np.arange(out)[:, None] * stride - pad + np.arange(kernel)[None, :] * rhs_dilate
    return int(((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < size)).sum())


def made(one: Instruction, inside: Computation) -> tuple[Array, ...]:
    """What an instruction makes: its result without the operands that a start of something asynchronous repeats."""
    repeated = sum(map(len, inside.operand_shapes(one))) if one.opcode in _REPEATING else 0
    return one.shapes[repeated:]


def memory(one: Instruction, inside: Computation) -> float:
    """Bytes of HBM that an instruction outside of fusions reads and writes."""
    if one.opcode in _NO_TRAFFIC or one.opcode.endswith("-done"):
        return 0
    read = [_hbm(shapes) for shapes in inside.operand_shapes(one)]
    if one.opcode in _SLICES:
        return 2 * _hbm(one.shapes)
    if one.opcode == "dynamic-update-slice":
        return 2 * read[1]
    if one.opcode in ("copy-start", "slice-start"):  # the result is (made, given, flag), or (given, made, flag)
        copy = one.shapes[one.opcode == "slice-start"]
        return _hbm((copy,)) + (copy.bytes if read[0] else 0)
    return sum(read) + _hbm(made(one, inside))


def fusion_memory(one: Instruction, inside: Computation, body: Computation) -> float:
    """Bytes of HBM that a fusion reads and writes: slices of what it slices, and of what it changes in place; nothing
    of a collective that began before it, whose result counted there."""
    updates = _updates(body)
    changed = {update.operands[0] for update in updates}
    results, passing = _travelling(one, body)
    own = [array for number, array in enumerate(one.shapes) if number not in results]
    total = sum(_hbm(body.by_name[update.operands[1]].shapes) for update in updates) if updates else _hbm(own)
    for number, shapes in enumerate(inside.operand_shapes(one)):
        name = body.parameters[number].name
        users = body.users(name)
        if name in changed or number in passing:
            continue
        sliced = bool(users) and all(user.opcode in _SLICES and user.operands[0] == name for user in users)
        whole = _hbm(shapes)
        total += min(whole, sum(user.shapes[0].bytes for user in users)) if sliced else whole
    return total


def _updates(body: Computation) -> list[Instruction]:
    """Updates in place that are a fusion's result, or part of it."""
    results = [body.root, *(body.by_name[name] for name in body.root.operands if body.root.opcode == "tuple")]
    return [one for one in results if one.opcode == "dynamic-update-slice"]


def goes_on(one: Instruction, inside: Computation) -> bool:
    """Whether this is a collective that began before. One that is done bit by bit, fused with what happens meanwhile,
    stands in every fusion that does a bit of it."""
    in_chain = "chain_id=" in one.rest
    return in_chain and not any("AsyncCollectiveStart" in user.rest for user in inside.users(one.name))


def _travelling(one: Instruction, body: Computation) -> tuple[set[int], set[int]]:
    """Which results and operands of a fusion are those of a collective that goes on beside it."""
    results, operands = set(), set()
    collectives = [each for each in body.instructions if goes_on(each, body)]
    for result, operand in _ALIAS.findall(one.attribute("output_to_operand_aliasing") or "") if collectives else ():
        users = body.users(body.parameters[int(operand)].name)
        if all(user is body.root or user in collectives for user in users):
            results.add(int(result or 0))
            operands.add(int(operand))
    return results, operands


def _hbm(shapes: Sequence[Array]) -> float:
    return sum(array.bytes for array in shapes if array.space == 0)

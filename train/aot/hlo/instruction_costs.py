"""Costs of single instructions: FLOPs of products, bytes of HBM traffic."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.aot.hlo.parser import Array, Computation, Instruction

# Instructions that move no data themselves: they name a value, or their parts are counted (loops, calls).
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
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
# The results of these start with their operands, which are not produced.
_REPEATS_OPERANDS = frozenset({"all-gather-start", "collective-permute-start", "send"})
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+),")  # index in the result: (number of the operand that it aliases, …)


def dot_flops(dot: Instruction, computation: Computation) -> float:
    """Two FLOPs for each element of the result and of the contracted dimensions."""
    left = computation.by_name[dot.operands[0]].shapes[0]
    contracted = [int(axis) for axis in re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")]
    return 2.0 * dot.shapes[0].size * float(np.prod([left.dims[axis] for axis in contracted]))


def convolution_flops(convolution: Instruction, computation: Computation) -> float:
    """FLOPs of a convolution, without products with padding.

    The TPU compiler writes matrix products as convolutions. Batch dimensions become spatial dimensions, dilated and
    padded so that each position of the result meets one position of the input: counting the whole window would count
    a batch of n products n times. So only pairs of kernel and input positions that meet are counted.
    """
    left, right = (computation.by_name[name].shapes[0] for name in convolution.operands[:2])
    (out,) = convolution.shapes[:1]
    labels = (convolution.attribute("dim_labels") or "").replace("->", "_")
    lhs, rhs, result = re.findall(r"[0-9a-z?]+", labels)
    window = _window(convolution)
    pairs = 1
    for number, axis in enumerate(sorted(label for label in lhs if label.isdigit())):
        sizes = left.dims[lhs.index(axis)], right.dims[rhs.index(axis)], out.dims[result.index(axis)]
        pairs *= _meeting_pairs(*sizes, **{name: values[number] for name, values in window.items()})
    # Labels: b batch, f features of the input and the result, i input features of the kernel. With groups, the kernel
    # has the input features of one group, and the result has the features of all groups.
    samples = out.dims[result.index("b")]
    return 2.0 * pairs * samples * out.dims[result.index("f")] * right.dims[rhs.index("i")]


def _window(convolution: Instruction) -> dict[str, list[int]]:
    """stride, pad (before), lhs_dilate and rhs_dilate of each spatial dimension, where given."""
    text = (convolution.attribute("window") or "{}")[1:-1]
    parts = dict(part.split("=", 1) for part in text.split())
    names = ("stride", "pad", "lhs_dilate", "rhs_dilate")
    return {name: [int(n.split("_")[0]) for n in parts[name].split("x")] for name in names if name in parts}


@functools.cache
def _meeting_pairs(
    size: int, kernel: int, out: int, *, stride: int = 1, pad: int = 0, lhs_dilate: int = 1, rhs_dilate: int = 1
) -> int:
    """Pairs (position of the result, position of the kernel) that fall on an element of the input."""
    at = np.arange(out)[:, None] * stride - pad + np.arange(kernel)[None, :] * rhs_dilate
    return int(((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < size)).sum())


def produced(one: Instruction, computation: Computation) -> tuple[Array, ...]:
    """The result of an instruction, without the operands that the start of an asynchronous instruction repeats."""
    repeated = sum(map(len, computation.operand_shapes(one))) if one.opcode in _REPEATS_OPERANDS else 0
    return one.shapes[repeated:]


def instruction_memory(one: Instruction, computation: Computation) -> float:
    """Bytes of HBM that an instruction outside of fusions reads and writes."""
    if one.opcode in _NO_TRAFFIC or one.opcode.endswith("-done"):  # counted where it starts
        return 0
    read = [_hbm_bytes(shapes) for shapes in computation.operand_shapes(one)]
    if one.opcode in _SLICES:  # reads only what it writes
        return 2 * _hbm_bytes(one.shapes)
    if one.opcode == "dynamic-update-slice":  # in place: reads and writes the update alone
        return 2 * read[1]
    if one.opcode in ("copy-start", "slice-start"):
        # The result is (copy, operand, context) of a copy, and (operand, copy, context) of a slice.
        copy = one.shapes[one.opcode == "slice-start"]
        return _hbm_bytes((copy,)) + (copy.bytes if read[0] else 0)
    return sum(read) + _hbm_bytes(produced(one, computation))


def fusion_memory(fusion: Instruction, computation: Computation, body: Computation) -> float:
    """Bytes of HBM that a fusion reads and writes.

    Of an operand that is only sliced the slices count, and of a result that is updated in place the updates: layers are
    a loop over stacked parameters, where each iteration reads one layer of a large array. Buffers of a collective that
    goes on during this fusion count where the collective starts.
    """
    updates = _in_place_updates(body)
    updated = {update.operands[0] for update in updates}
    collective_results, collective_operands = _collective_buffers(fusion, body)
    own = [array for number, array in enumerate(fusion.shapes) if number not in collective_results]
    total = sum(_hbm_bytes(body.by_name[update.operands[1]].shapes) for update in updates)
    total = total if updates else _hbm_bytes(own)
    for number, shapes in enumerate(computation.operand_shapes(fusion)):
        name = body.parameters[number].name
        users = body.users(name)
        if name in updated or number in collective_operands:
            continue
        sliced = bool(users) and all(user.opcode in _SLICES and user.operands[0] == name for user in users)
        whole = _hbm_bytes(shapes)
        total += min(whole, sum(user.shapes[0].bytes for user in users)) if sliced else whole
    return total


def _in_place_updates(body: Computation) -> list[Instruction]:
    """Updates in place that are the result of a fusion, or a part of it."""
    results = [body.root, *(body.by_name[name] for name in body.root.operands if body.root.opcode == "tuple")]
    return [one for one in results if one.opcode == "dynamic-update-slice"]


def continues_collective(one: Instruction, computation: Computation) -> bool:
    """Whether this is the continuation of a collective that another fusion started.

    The TPU compiler may split a collective into steps and fuse each with other work, to overlap the two. The collective
    then appears in every one of these fusions, with the same `chain_id`; it counts in the first.
    """
    in_chain = "chain_id=" in one.attributes
    return in_chain and not any("AsyncCollectiveStart" in user.attributes for user in computation.users(one.name))


def _collective_buffers(fusion: Instruction, body: Computation) -> tuple[set[int], set[int]]:
    """Numbers of the results and operands of a fusion that belong to a collective which continues in it."""
    results, operands = set(), set()
    collectives = [one for one in body.instructions if continues_collective(one, body)]
    aliases = _ALIAS.findall(fusion.attribute("output_to_operand_aliasing") or "") if collectives else ()
    for result, operand in aliases:
        users = body.users(body.parameters[int(operand)].name)
        if all(user is body.root or user in collectives for user in users):
            results.add(int(result or 0))
            operands.add(int(operand))
    return results, operands


def _hbm_bytes(shapes: Sequence[Array]) -> float:
    return sum(array.bytes for array in shapes if array.space == 0)

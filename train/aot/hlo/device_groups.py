"""Which devices take part in a collective together, from the attributes of the instruction.

Devices are numbered along the program's mesh in row-major order, as the compiler numbers its partitions. XLA writes
groups in three ways: as lists `{{0,1},{2,3}}`, as a reshaped and transposed range `[2,4]<=[4,2]T(1,0)`, and by axes of
a mesh `mesh['a'=2,'b'=4] {'b'}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.aot.hlo.parser import Instruction

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")


def device_groups(collective: Instruction, devices: int) -> np.ndarray:
    """(groups, members) device numbers; the members of a group communicate with each other.

    devices: their number in the program; a collective without groups is over all of them.
    """
    if collective.opcode.startswith("collective-permute"):
        return np.asarray(_lists(collective.attribute("source_target_pairs") or ""))
    if by_axes := _MESH.search(collective.attributes):
        return _groups_of_axes(*by_axes.groups())
    if range_ := _RANGE.search(collective.attributes):
        shape, dims = (_numbers(part) for part in range_.groups()[:2])
        permutation = _numbers(range_.group(3)) if range_.group(3) else None
        order = np.arange(np.prod(dims)).reshape(dims)
        return order.transpose(permutation or range(len(dims))).reshape(shape[0], -1)
    return np.asarray(_lists(collective.attribute("replica_groups") or "") or [range(devices)])


def crosses_slices(groups: np.ndarray, slices: Sequence[int]) -> bool:
    """Whether any group has members in more than one slice; slices: the slice of each device."""
    slice_of = np.asarray(slices)[groups]
    return bool((slice_of != slice_of[:, :1]).any())


def _groups_of_axes(mesh: str, axes: str) -> np.ndarray:
    """Groups along `axes`, such as `'b'`, of the mesh `'a'=2,'b'=4`.

    An axis may be in part: `'b':(1)2` is the factor of 2 of axis b that comes after a factor of 1.
    """
    names, sizes = [], []
    for name, size, _, _ in _AXIS.findall(mesh):
        names.append(name)
        sizes.append(int(size))
    order = np.arange(np.prod(sizes)).reshape(sizes)
    grouped: list[int] = []
    for name, _, before, part in _AXIS.findall(axes):
        at = names.index(name)
        if part:  # split the axis into three, (before, part, after), and group along the middle one
            factors = (int(before), int(part), order.shape[at] // (int(before) * int(part)))
            order = order.reshape(*order.shape[:at], *factors, *order.shape[at + 1 :])
            names[at : at + 1] = [f"{name}<", name, f"{name}>"]
            at += 1
        grouped.append(names.index(name))
    rest = [axis for axis in range(order.ndim) if axis not in grouped]
    members = int(np.prod([order.shape[axis] for axis in grouped]))
    return order.transpose([*rest, *grouped]).reshape(-1, members)


def _lists(text: str) -> list[list[int]]:
    return [_numbers(part) for part in re.findall(r"\{([\d,\s]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]

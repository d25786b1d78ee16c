"""Who takes part in a collective: the groups of devices that exchange something, from the attribute's text.

Devices are numbered along the program's mesh, data-major, as the compiler numbers its partitions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.aot.hlo import Instruction

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")


def groups(one: Instruction, devices: int) -> np.ndarray:
    """(groups, members) of device numbers; each member exchanges with the others of its group."""
    if one.opcode.startswith("collective-permute"):
        return np.asarray(_lists(one.attribute("source_target_pairs") or ""))
    if named := _MESH.search(one.rest):
        return _by_mesh(*named.groups())
    if iota := _IOTA.search(one.rest):
        shape, dims = (_numbers(part) for part in iota.groups()[:2])
        turned = _numbers(iota.group(3)) if iota.group(3) else None
        order = np.arange(np.prod(dims)).reshape(dims)
        return order.transpose(turned or range(len(dims))).reshape(shape[0], -1)
    return np.asarray(_lists(one.attribute("replica_groups") or "") or [range(devices)])


def between_slices(members: np.ndarray, slices: Sequence[int]) -> bool:
    """Whether a group has members in more than one slice; slices: of each device."""
    where = np.asarray(slices)[members]
    return bool((where != where[:, :1]).any())


def _by_mesh(mesh: str, over: str) -> np.ndarray:
    """`'a'=2,'b'=4` and `'b'`, or a part of an axis, `'b':(1)2`: the second factor, 2, after a first one of 1."""
    names, sizes = [], []
    for name, size, _, _ in _AXIS.findall(mesh):
        names.append(name)
        sizes.append(int(size))
    order = np.arange(np.prod(sizes)).reshape(sizes)
    together: list[int] = []
    for name, _, before, part in _AXIS.findall(over):
        at = names.index(name)
        if part:  # (before, part, after) in place of the axis
            factors = (int(before), int(part), order.shape[at] // (int(before) * int(part)))
            order = order.reshape(*order.shape[:at], *factors, *order.shape[at + 1 :])
            names[at : at + 1] = [f"{name}<", name, f"{name}>"]
            at += 1
        together.append(names.index(name))
    rest = [axis for axis in range(order.ndim) if axis not in together]
    members = int(np.prod([order.shape[axis] for axis in together]))
    return order.transpose([*rest, *together]).reshape(-1, members)


def _lists(text: str) -> list[list[int]]:
    return [_numbers(part) for part in re.findall(r"\{([\d,\s]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]

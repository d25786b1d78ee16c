"""The costs of a compiled program on one device, and their sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """Traffic of one kind of collective.

    count: how often it runs.
    bytes: size of the whole array that it produces, gathers or scatters, in the dtype that is sent (XLA may round a sum
    before it sends it).
    sent: bytes that the busiest device sends, in a ring.
    sent_between: the part of `sent` that crosses slices.
    """

    count: float = 0
    bytes: float = 0
    sent: float = 0
    sent_between: float = 0


@dataclass(frozen=True)
class Costs:
    """Costs of one run on one device.

    flops: of matrix products and convolutions; elementwise operations are not counted.
    memory: bytes read from and written to HBM, from the sizes of operands and results.
    collectives: by opcode.
    kernels: calls of hand-written (Pallas) kernels; `unknown_kernels` of them carry no cost estimate, so their FLOPs
    are missing from `flops`.
    open_loops: loops whose number of iterations depends on data; each counts as one iteration.
    """

    flops: float = 0
    memory: float = 0
    collectives: Mapping[str, Traffic] = field(default_factory=dict)
    kernels: float = 0
    unknown_kernels: float = 0
    open_loops: int = 0

    def __add__(self, other: Costs) -> Costs:
        return self.plus(1, other)

    def plus(self, times: float, other: Costs) -> Costs:
        """These costs and `times` those of `other`. Open loops are counted once: they are loops of the program."""
        collectives = dict(self.collectives)
        for kind, new in other.collectives.items():
            old = dataclasses.astuple(collectives.get(kind, Traffic()))
            collectives[kind] = Traffic(*(a + times * b for a, b in zip(old, dataclasses.astuple(new), strict=True)))
        return Costs(
            self.flops + times * other.flops,
            self.memory + times * other.memory,
            collectives,
            self.kernels + times * other.kernels,
            self.unknown_kernels + times * other.unknown_kernels,
            self.open_loops + other.open_loops,
        )

    @property
    def sent(self) -> float:
        """Bytes that the busiest device sends, of all collectives."""
        return sum(traffic.sent for traffic in self.collectives.values())

    @property
    def sent_between(self) -> float:
        return sum(traffic.sent_between for traffic in self.collectives.values())

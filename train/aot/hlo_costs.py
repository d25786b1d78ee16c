"""What one run of a compiled program costs a device: FLOPs of products, traffic with memory, bytes of collectives.

`Compiled.cost_analysis()` counts a loop's body once, however often it runs; here bodies are counted as often as they
run. Of a conditional the branch with the most FLOPs counts. A loop whose number of rounds depends on data counts as one
round, and `Costs.open_loops` says that there was one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from steerling_jax.train.aot.hlo import Computation, Instruction, Module, read_module
from steerling_jax.train.aot.hlo_groups import between_slices, groups
from steerling_jax.train.aot.hlo_sizes import convolution_flops, dot_flops, fusion_memory, goes_on, made, memory

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')


@dataclass(frozen=True)
class Traffic:
    """Of one kind of collective. count: how often it runs. bytes: the size of the whole array that it makes, gathers or
    scatters, as the wire has it (a sum may be rounded first). sent: what the busiest device sends in a ring.
    sent_between: the part of `sent` that crosses slices."""

    count: float = 0
    bytes: float = 0
    sent: float = 0
    sent_between: float = 0


@dataclass(frozen=True)
class Costs:
    """On one device. memory: bytes read from and written to HBM, from the sizes of operands and results. kernels: calls
    of hand-written kernels; those without a cost estimate (unknown_kernels) hide their FLOPs."""

    flops: float = 0
    memory: float = 0
    collectives: Mapping[str, Traffic] = field(default_factory=dict)
    kernels: float = 0
    unknown_kernels: float = 0
    open_loops: int = 0

    def __add__(self, other: Costs) -> Costs:
        return _combined(self, other, 1)

    def plus(self, times: float, other: Costs) -> Costs:
        """With `other`, so many times."""
        return _combined(self, other, times)

    @property
    def sent(self) -> float:
        return sum(one.sent for one in self.collectives.values())

    @property
    def sent_between(self) -> float:
        return sum(one.sent_between for one in self.collectives.values())


def costs_of(text: str, slices: Sequence[int] = (0,)) -> Costs:
    """Of the program in `text` (`Compiled.as_text()`); slices: the slice of each device, in the mesh's order."""
    return _Counter(read_module(text), slices).costs


class _Counter:
    def __init__(self, module: Module, slices: Sequence[int]):
        self.module, self.slices = module, slices
        self._known: dict[tuple[str, bool], Costs] = {}
        self.costs = self._computation(module.entry, fused=False)

    def _computation(self, name: str, *, fused: bool) -> Costs:
        if (name, fused) not in self._known:
            total = Costs()
            inside = self.module.computations[name]
            for one in inside.instructions:
                total = total + self._instruction(one, inside, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _instruction(self, one: Instruction, inside: Computation, fused: bool) -> Costs:
        kind = one.opcode.removesuffix("-start")
        match kind:
            case "while":
                trips = trip_count(one, inside, self.module)
                rounds = [self._computation(name, fused=fused) for name in one.called("body", "condition")]
                total = Costs(open_loops=int(trips is None))
                return functools.reduce(
                    lambda sum_, each: sum_.plus(1 if trips is None else trips, each), rounds, total
                )
            case "conditional":
                names = one.called("branch_computations", "true_computation", "false_computation")
                return max((self._computation(name, fused=fused) for name in names), key=lambda c: (c.flops, c.memory))
            case "call" | "async":
                called = [self._computation(name, fused=fused) for name in one.called("calls", "to_apply")]
                return functools.reduce(Costs.__add__, called, Costs())
            case "fusion":
                (name,) = one.called("calls")
                total = self._computation(name, fused=True)
                own = 0 if fused else fusion_memory(one, inside, self.module.computations[name])
                return dataclasses.replace(total, memory=total.memory + own)
            case "dot":
                total = Costs(flops=dot_flops(one, inside))
            case "convolution":
                total = Costs(flops=convolution_flops(one, inside))
            case "custom-call" if "tpu_custom_call" in one.rest:
                estimate = _KERNEL_FLOPS.search(one.rest)
                total = Costs(flops=int(estimate.group(1)) if estimate else 0, kernels=1, unknown_kernels=not estimate)
            case "send" if "xla_megascale_runtime" in one.rest:
                total = Costs(collectives=self._between_slices(one, inside))
            case _ if kind in KINDS and not goes_on(one, inside):
                total = Costs(collectives={kind: self._collective(kind, one, inside)})
            case _:
                total = Costs()
        return total if fused else dataclasses.replace(total, memory=memory(one, inside))

    def _between_slices(self, one: Instruction, inside: Computation) -> dict[str, Traffic]:
        """What a device hands to its host for the other slices: their part of a collective, done by the hosts."""
        given = _TRANSFER.search(one.rest)
        kind = given.group(1).lower().replace("_", "-") if given else ""
        n, size = len(set(self.slices)), sum(array.bytes for array in inside.operand_shapes(one)[0])
        shares = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1}
        sent = size * shares.get(kind, (n - 1) / n)
        return {kind if kind in KINDS else "collective-permute": Traffic(1, size, sent, sent)}

    def _collective(self, kind: str, one: Instruction, inside: Computation) -> Traffic:
        given = sum(array.bytes for shapes in inside.operand_shapes(one) for array in shapes)
        results = sum(array.bytes for array in made(one, inside))
        members = groups(one, len(self.slices))
        n = members.shape[1]
        if kind in ("collective-permute", "collective-broadcast"):
            size = sent = given
        else:
            size = n * results if kind == "reduce-scatter" else results
            sent = (2 if kind == "all-reduce" else 1) * (n - 1) / n * size
        between = len(self.slices) > 1 and between_slices(members, self.slices)
        return Traffic(1, size, sent, sent if between else 0)


def trip_count(one: Instruction, inside: Computation, module: Module) -> int | None:
    """How often a loop's body runs: as the compiler wrote it down, or from a condition `i < n` on constants and the
    step of i in the body. None where that depends on data."""
    if known := _TRIPS.search(one.rest):
        return int(known.group(1))
    condition = module.computations[one.called("condition")[0]]
    compare, names = condition.root, condition.root.operands
    if compare.opcode == "fusion":
        fused = module.computations[compare.called("calls")[0]]
        outside = {parameter.name: names[number] for number, parameter in fused.parameters.items()}
        compare, names = fused.root, tuple(outside.get(name, name) for name in fused.root.operands)
        condition = Computation(condition.name, condition.instructions + fused.instructions)
    if compare.opcode != "compare" or compare.attribute("direction") != "LT":
        return None
    begin, end = (_at_start(name, condition, one, inside) for name in names)
    step = _step(condition.by_name[names[0]], module.computations[one.called("body")[0]])
    if begin is None or end is None or step is None:
        return None
    return max(0, -((begin - end) // step))


def _at_start(name: str, condition: Computation, loop: Instruction, inside: Computation) -> int | None:
    """The integer that `name` of a loop's condition is when the loop begins, where it is a constant."""
    value = condition.by_name[name]
    if value.opcode == "get-tuple-element":
        first = inside.by_name[loop.operands[0]]
        if first.opcode != "tuple":
            return None
        value = inside.by_name[first.operands[int(value.attribute("index") or 0)]]
    while value.opcode in ("copy", "bitcast"):
        value = inside.by_name.get(value.operands[0], condition.root)
    return _constant(value)


def _step(counter: Instruction, body: Computation) -> int | None:
    """By how much a round raises the loop's counter: one, unless rounds were unrolled."""
    if counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
        return None
    after = body.by_name[body.root.operands[int(counter.attribute("index") or 0)]]
    steps = [_constant(body.by_name[name]) for name in after.operands] if after.opcode == "add" else []
    return next((step for step in steps if step), 1)


def _constant(value: Instruction) -> int | None:
    is_number = value.opcode == "constant" and value.argument.lstrip("-").isdigit()
    return int(value.argument) if is_number else None


def _combined(a: Costs, b: Costs, times: float) -> Costs:
    collectives = dict(a.collectives)
    for kind, new in b.collectives.items():
        old = dataclasses.astuple(collectives.get(kind, Traffic()))
        collectives[kind] = Traffic(*(x + times * y for x, y in zip(old, dataclasses.astuple(new), strict=True)))
    return Costs(
        a.flops + times * b.flops,
        a.memory + times * b.memory,
        collectives,
        a.kernels + times * b.kernels,
        a.unknown_kernels + times * b.unknown_kernels,
        a.open_loops + b.open_loops,
    )

"""Sums the costs of a parsed program: bodies of loops as often as they run, of a conditional the costliest branch."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from steerling_jax.train.aot.hlo.costs import Costs, Traffic
from steerling_jax.train.aot.hlo.device_groups import crosses_slices, device_groups
from steerling_jax.train.aot.hlo.instruction_costs import (
    continues_collective,
    convolution_flops,
    dot_flops,
    fusion_memory,
    instruction_memory,
    produced,
)
from steerling_jax.train.aot.hlo.loops import trip_count
from steerling_jax.train.aot.hlo.parser import Computation, Instruction, Module

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')


def count_costs(module: Module, slices: Sequence[int]) -> Costs:
    """Costs of one run of `module` on one device; slices: the slice of each device, in the order of the mesh."""
    return _Counter(module, slices).computation(module.entry, fused=False)


class _Counter:
    """Counts each computation once and remembers it: a body may be called from several places."""

    def __init__(self, module: Module, slices: Sequence[int]):
        self.module, self.slices = module, slices
        self._counted: dict[tuple[str, bool], Costs] = {}

    def computation(self, name: str, *, fused: bool) -> Costs:
        """Costs of all instructions of a computation. Inside of a fusion (`fused`) intermediate values stay in
        registers and have no memory traffic; the fusion as a whole has."""
        if (name, fused) not in self._counted:
            total = Costs()
            computation = self.module.computations[name]
            for instruction in computation.instructions:
                total = total + self._instruction(instruction, computation, fused)
            self._counted[name, fused] = total
        return self._counted[name, fused]

    def _instruction(self, one: Instruction, inside: Computation, fused: bool) -> Costs:
        kind = one.opcode.removesuffix("-start")
        match kind:
            case "while":
                return self._loop(one, inside, fused)
            case "conditional":
                names = one.called("branch_computations", "true_computation", "false_computation")
                return max((self.computation(name, fused=fused) for name in names), key=lambda c: (c.flops, c.memory))
            case "call" | "async":
                called = [self.computation(name, fused=fused) for name in one.called("calls", "to_apply")]
                return functools.reduce(Costs.__add__, called, Costs())
            case "fusion":
                (name,) = one.called("calls")
                total = self.computation(name, fused=True)
                own = 0 if fused else fusion_memory(one, inside, self.module.computations[name])
                return dataclasses.replace(total, memory=total.memory + own)
            case "dot":
                total = Costs(flops=dot_flops(one, inside))
            case "convolution":
                total = Costs(flops=convolution_flops(one, inside))
            case "custom-call" if "tpu_custom_call" in one.attributes:
                estimate = _KERNEL_FLOPS.search(one.attributes)
                total = Costs(flops=int(estimate.group(1)) if estimate else 0, kernels=1, unknown_kernels=not estimate)
            case "send" if "xla_megascale_runtime" in one.attributes:
                total = Costs(collectives=self._host_transfer(one, inside))
            case _ if kind in COLLECTIVES and not continues_collective(one, inside):
                total = Costs(collectives={kind: self._collective(kind, one, inside)})
            case _:
                total = Costs()
        return total if fused else dataclasses.replace(total, memory=instruction_memory(one, inside))

    def _loop(self, one: Instruction, inside: Computation, fused: bool) -> Costs:
        trips = trip_count(one, inside, self.module)
        total = Costs(open_loops=int(trips is None))
        for name in one.called("body", "condition"):
            total = total.plus(1 if trips is None else trips, self.computation(name, fused=fused))
        return total

    def _collective(self, kind: str, one: Instruction, inside: Computation) -> Traffic:
        """A collective within slices or over the network, as a ring of n devices does it: n − 1 steps, in each of which
        every device sends one n-th of the array; an all-reduce is a reduce-scatter and an all-gather, so twice that."""
        given = sum(array.bytes for shapes in inside.operand_shapes(one) for array in shapes)
        results = sum(array.bytes for array in produced(one, inside))
        groups = device_groups(one, len(self.slices))
        n = groups.shape[1]
        if kind in ("collective-permute", "collective-broadcast"):
            size = sent = given
        else:
            size = n * results if kind == "reduce-scatter" else results
            sent = (2 if kind == "all-reduce" else 1) * (n - 1) / n * size
        between = len(self.slices) > 1 and crosses_slices(groups, self.slices)
        return Traffic(1, size, sent, sent if between else 0)

    def _host_transfer(self, one: Instruction, inside: Computation) -> dict[str, Traffic]:
        """A collective between slices that the hosts carry out: the device only sends its operand to its host. n is
        the number of slices."""
        transfer = _TRANSFER.search(one.attributes)
        kind = transfer.group(1).lower().replace("_", "-") if transfer else ""
        n, size = len(set(self.slices)), sum(array.bytes for array in inside.operand_shapes(one)[0])
        factors = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1}
        sent = size * factors.get(kind, (n - 1) / n)
        return {kind if kind in COLLECTIVES else "collective-permute": Traffic(1, size, sent, sent)}

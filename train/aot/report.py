"""What a compiled program needs and communicates, in one record; and the same for depths that were not compiled."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from steerling_jax.errors import UserError, error_summary
from steerling_jax.models.steerling.flops import Flops
from steerling_jax.train.aot.compile_program import compile_program
from steerling_jax.train.aot.compiler import compiler_version
from steerling_jax.train.aot.decoder_program import DecoderMode, DecoderProgram
from steerling_jax.train.aot.estimate import TimeEstimate, Work, estimate
from steerling_jax.train.aot.hlo import Costs, program_costs
from steerling_jax.train.aot.program import Mode, Program
from steerling_jax.train.aot.program_flops import kernel_flops, own_flops
from steerling_jax.train.aot.target import Target

_SIZE = r"([\d.]+)([KMGT]?)"
# The compiler's two messages for a program that does not fit: bytes needed, bytes available.
_OUT_OF_MEMORY = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"memory required for [\w ]+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one device.

    arguments: parameters, state, and batch or cache. `reused` of them are donated: results take their memory.
    temporaries: the rest, as the compiler allocates it.
    peak: the most at any time.
    """

    arguments: float
    temporaries: float
    results: float
    reused: float
    peak: float


@dataclass(frozen=True)
class Shortage:
    """Bytes of HBM that a program which does not fit needs on a device (at least: the compiler may stop counting), that
    there are, and that are missing."""

    needed: float
    available: float
    missing: float


@dataclass(frozen=True)
class Report:
    """One program on one target. All costs are those of one device and one step or pass.

    layers: of the model. compiled_layers: the depths that were compiled; where there are two, the figures are
    extrapolated from them.
    sequences: of a step, or rows of a pass.
    model_flops: what the mathematics needs.
    kernel_flops: the part of costs.flops that is computed from the mask, as the compiler does not see into kernels.
    memory, costs, estimate: None where the program does not fit; shortage: None where it fits.
    """

    config: str
    mode: Mode | DecoderMode
    topology: str
    slices: int
    devices: int
    mesh: dict[str, int]
    layers: int
    compiled_layers: tuple[int, ...]
    sequences: int
    seq_len: int
    parameters: int
    parameter_bytes: float
    hbm: float
    model_flops: Flops
    kernel_flops: float
    memory: Memory | None
    costs: Costs | None
    estimate: TimeEstimate | None
    shortage: Shortage | None
    compile_seconds: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        return self.shortage is None

    @property
    def work_over_model(self) -> float | None:
        """FLOPs as compiled over those of the mathematics: above 1 by recomputation, padding and masked pairs."""
        return None if self.costs is None else self.costs.flops / self.model_flops.total


def make_report(program: Program | DecoderProgram, target: Target, depths: Sequence[int] = ()) -> Report:
    """Compiles `program`; or, with two smaller `depths` (numbers of layers), compiles these and extrapolates.

    Raises `UserError` where the compiler fails for another reason than lack of memory.
    """
    start = time.perf_counter()
    depths = tuple(depths) or (program.layers,)
    parameters, parameter_bytes = program.parameter_bytes(target.mesh)
    per_device = Flops(*(value / target.mesh.size for value in dataclasses.astuple(own_flops(program))))
    in_kernels = kernel_flops(program, per_device)
    memory, costs, shortage = _compile_depths(program, target, depths)
    if costs is not None:
        costs = dataclasses.replace(costs, flops=costs.flops + in_kernels)
    return Report(
        config=program.name,
        mode=program.mode,
        topology=target.topology,
        slices=len(set(target.slices)),
        devices=target.mesh.size,
        mesh=dict(target.mesh.shape),
        layers=program.layers,
        compiled_layers=depths,
        sequences=program.sequences,
        seq_len=program.seq_len,
        parameters=parameters,
        parameter_bytes=parameter_bytes,
        hbm=target.hbm,
        model_flops=per_device,
        kernel_flops=in_kernels,
        memory=memory,
        costs=costs,
        estimate=None if costs is None else estimate(_work(costs, per_device), target.chip),
        shortage=shortage,
        compile_seconds=time.perf_counter() - start,
        versions={"jax": jax.__version__, "libtpu": compiler_version() or "none"},
    )


def _compile_depths(
    program: Program | DecoderProgram, target: Target, depths: Sequence[int]
) -> tuple[Memory | None, Costs | None, Shortage | None]:
    """(memory, costs, None) of the program at its own depth; (None, None, shortage) where it does not fit."""
    try:
        compiled = [_compile(program.with_layers(depth), target) for depth in depths]
    except jax.errors.JaxRuntimeError as error:
        return None, None, read_shortage(str(error))
    memory, costs = compiled[0] if len(compiled) == 1 else extrapolate(compiled, depths, program.layers)
    # The compiler cannot refuse a depth that it did not compile.
    if memory.peak > target.hbm:
        return None, None, Shortage(memory.peak, target.hbm, memory.peak - target.hbm)
    return memory, costs, None


def _compile(program: Program | DecoderProgram, target: Target) -> tuple[Memory, Costs]:
    decoder = isinstance(program, DecoderProgram)
    compiled = program.compile(target.mesh) if decoder else compile_program(program, target.mesh)
    stats: Any = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.peak_memory_in_bytes,
    )
    return memory, program_costs(compiled.as_text() or "", target.slices)


def extrapolate(compiled: Sequence[tuple[Memory, Costs]], depths: Sequence[int], layers: int) -> tuple[Memory, Costs]:
    """Memory and costs at `layers`, linearly from those at two depths: each layer adds the same."""
    (low_memory, low), (high_memory, high) = compiled
    factor = (layers - depths[1]) / (depths[1] - depths[0])
    pairs = zip(dataclasses.astuple(low_memory), dataclasses.astuple(high_memory), strict=True)
    memory = Memory(*(b + factor * (b - a) for a, b in pairs))
    costs = high.plus(factor, high).plus(-factor, low)
    return memory, dataclasses.replace(costs, open_loops=high.open_loops)


def read_shortage(text: str) -> Shortage:
    """Reads the compiler's message. Raises `UserError` with its first line where it is about something else."""
    match = next((match for pattern in _OUT_OF_MEMORY if (match := pattern.search(text))), None)
    if "RESOURCE_EXHAUSTED" not in text or match is None:
        raise UserError(f"The TPU compiler failed: {error_summary(text)}")
    used, used_unit, limit, limit_unit = match.groups()
    needed, available = float(used) * _UNITS[used_unit], float(limit) * _UNITS[limit_unit]
    return Shortage(needed, available, needed - available)


def _work(costs: Costs, own: Flops) -> Work:
    return Work(costs.flops, costs.memory, costs.sent, costs.sent_between, own.total)

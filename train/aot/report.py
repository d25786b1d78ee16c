"""What a compiled program needs and moves, in one record; and the same for depths that were not compiled."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from steerling_jax.errors import UserError, first_line
from steerling_jax.models.steerling.flops import Flops
from steerling_jax.train.aot.chips import Chip, compiler_version
from steerling_jax.train.aot.estimate import TimeEstimate, Work, estimate
from steerling_jax.train.aot.hlo_costs import Costs, costs_of
from steerling_jax.train.aot.programs import Mode, bytes_per_device, compile_program, kernel_flops, own_flops
from steerling_jax.train.run.run_config import RunConfig

_SIZE = r"([\d.]+)([KMGT]?)"
# What a program needs and what there is, in the two ways that the compiler words it.
_USED = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"memory required for [\w ]+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one device. peak: the most at any time. arguments: weights, state, batch or cache, of which
    `reused` are taken over by the results. temporaries: the rest, as the compiler lays them out."""

    arguments: float
    temporaries: float
    results: float
    reused: float
    peak: float


@dataclass(frozen=True)
class Shortage:
    """A program too big: bytes it needs on a device (at least: the compiler may stop counting), what there is, and how
    much is missing."""

    needed: float
    available: float
    missing: float


@dataclass(frozen=True)
class Report:
    """One program on one topology.

    layers: of the model; compiled_layers: the depths that were compiled, two where the rest follows along a straight
    line. sequences: of a step, or rows of a pass. All costs are of one device and one step or pass; model_flops are
    those of the mathematics, of one device too, and kernel_flops the part of costs.flops that is worked out, because
    the compiler cannot see into kernels. memory, costs and estimate are None where the program does not fit, and then
    shortage is not.
    """

    config: str
    mode: Mode
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
        """FLOPs as compiled over those of the mathematics: what recomputation, padding and masked pairs cost."""
        return None if self.costs is None else self.costs.flops / self.model_flops.total


def make_report(
    mode: Mode, run: RunConfig, topology: str, chip: Chip, mesh: Mesh, *, rows: int, depths: Sequence[int]
) -> Report:
    """Compiles `run` at its own depth, or at two smaller `depths` and goes on from there along a straight line."""
    begin = time.perf_counter()
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    sequences = run.data.batch_size if mode == "train" else rows
    parameters, held = bytes_per_device(mode, run, mesh)
    flops = own_flops(mode, run, rows)
    per_device = Flops(*(value / mesh.size for value in dataclasses.astuple(flops)))
    memory = costs = None
    try:
        found = [_compiled(mode, at_depth(run, depth), mesh, rows, slices) for depth in depths]
        memory, costs = found[0] if len(found) == 1 else along_line(found, depths, run.model.n_layers)
        shortage = _shortage(memory, chip)
    except jax.errors.JaxRuntimeError as error:
        shortage = read_shortage(str(error))
    hidden = kernel_flops(mode, run, per_device)
    if shortage is not None:
        memory = costs = None
    elif costs is not None:
        costs = dataclasses.replace(costs, flops=costs.flops + hidden)
    seconds = time.perf_counter() - begin
    return Report(
        config=run.name,
        mode=mode,
        topology=topology,
        slices=len(set(slices)),
        devices=mesh.size,
        mesh=dict(mesh.shape),
        layers=run.model.n_layers,
        compiled_layers=tuple(depths),
        sequences=sequences,
        seq_len=run.data.seq_len if mode != "decode" else run.model.block_size,
        parameters=parameters,
        parameter_bytes=held,
        hbm=chip.hbm / chip.devices,
        model_flops=per_device,
        kernel_flops=hidden,
        memory=memory,
        costs=costs,
        estimate=None if costs is None else estimate(_work(costs, per_device), chip),
        shortage=shortage,
        compile_seconds=seconds,
        versions={"jax": jax.__version__, "libtpu": compiler_version() or "none"},
    )


def at_depth(run: RunConfig, layers: int) -> RunConfig:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, n_layers=layers))


def along_line(found: Sequence[tuple[Memory, Costs]], depths: Sequence[int], layers: int) -> tuple[Memory, Costs]:
    """Memory and costs at `layers`, from those at two depths."""
    (low_memory, low), (high_memory, high) = found
    more = (layers - depths[1]) / (depths[1] - depths[0])
    pairs = zip(dataclasses.astuple(low_memory), dataclasses.astuple(high_memory), strict=True)
    memory = Memory(*(b + more * (b - a) for a, b in pairs))
    costs = high.plus(more, high).plus(-more, low)
    return memory, dataclasses.replace(costs, open_loops=high.open_loops)


def read_shortage(text: str) -> Shortage:
    """From the compiler's message. `UserError` with its first line where it complains of something else."""
    found = next((match for pattern in _USED if (match := pattern.search(text))), None)
    if "RESOURCE_EXHAUSTED" not in text or found is None:
        raise UserError(f"The TPU compiler gave up: {first_line(text)}")
    used, used_unit, limit, limit_unit = found.groups()
    needed, available = float(used) * _UNITS[used_unit], float(limit) * _UNITS[limit_unit]
    return Shortage(needed, available, needed - available)


def _compiled(mode: Mode, run: RunConfig, mesh: Mesh, rows: int, slices: Sequence[int]) -> tuple[Memory, Costs]:
    compiled = compile_program(mode, run, mesh, rows)
    stats: Any = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.peak_memory_in_bytes,
    )
    return memory, costs_of(compiled.as_text() or "", slices)


def _shortage(memory: Memory, chip: Chip) -> Shortage | None:
    """Of a depth that was not compiled, which the compiler could not refuse."""
    hbm = chip.hbm / chip.devices
    return Shortage(memory.peak, hbm, memory.peak - hbm) if memory.peak > hbm else None


def _work(costs: Costs, own: Flops) -> Work:
    return Work(costs.flops, costs.memory, costs.sent, costs.sent_between, own.total)

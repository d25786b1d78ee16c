"""A report for a person and for a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steerling_jax.train.aot.chips import GIB
from steerling_jax.train.aot.report import Report


def as_json(report: Report) -> dict[str, Any]:
    """All of the report, sizes in bytes and times in seconds, with what follows from it."""
    from steerling_jax.cli.console import plain

    body: dict[str, Any] = plain(report)
    body |= {"fits": report.fits, "work_over_model": report.work_over_model}
    body["model_flops"]["total"] = report.model_flops.total
    if report.estimate is not None:
        body["estimate"]["bound_by"] = report.estimate.bound_by
    return body


def print_report(report: Report) -> None:
    from rich.table import Table

    from steerling_jax.cli.console import stdout

    table = Table(title=title(report), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(report):
        table.add_row(name, value)
    stdout().print(table)
    stdout().print(verdict(report), markup=False, soft_wrap=True)


def title(report: Report) -> str:
    many = f"{report.slices} × " if report.slices > 1 else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "one device"
    what = "sequences a step" if report.mode == "train" else "rows a pass"
    return (
        f"{report.config}, {report.mode}, {many}{report.topology} ({report.devices} devices: {mesh}), "
        f"{report.sequences} {what}, context {report.seq_len}"
    )


def verdict(report: Report) -> str:
    """One sentence: it fits, or by how much not."""
    if report.shortage is not None:
        short = report.shortage
        return (
            f"It does not fit: {short.needed / GIB:.2f} GiB a device of {short.available / GIB:.2f}, "
            f"{short.missing / GIB:.2f} GiB too much. A smaller --batch-size or --rows, or a --mesh with more fsdp or "
            "tensor, needs less."
        )
    assert report.memory is not None
    left = report.hbm - report.memory.peak
    return f"It fits, with {left / GIB:.2f} GiB of {report.hbm / GIB:.0f} a device to spare."


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{report.parameters / 1e9:.3f} G, {_gib(report.parameter_bytes)} of them on a device"
    if len(report.compiled_layers) > 1:
        depths = " and ".join(map(str, report.compiled_layers))
        yield "layers", f"{report.layers}, on the line through {depths} layers, which were compiled"
    if report.memory is not None:
        memory = report.memory
        yield "memory, peak", f"{_gib(memory.peak)} of {_gib(report.hbm)}"
        yield "  arguments", f"{_gib(memory.arguments)}, {_gib(memory.reused)} of them taken over by results"
        yield "  temporaries", _gib(memory.temporaries)
    own = report.model_flops
    yield "FLOPs, the model's own", f"{_tera(own.total)} (concept module {own.concepts / own.total:.1%})"
    if report.costs is not None:
        yield "FLOPs, as compiled", f"{_tera(report.costs.flops)}, {report.work_over_model:.2f} times as many"
        if report.kernel_flops:
            yield "", f"{_tera(report.kernel_flops)} of them in attention kernels, worked out"
        yield "memory traffic", _gib(report.costs.memory)
        for kind, one in sorted(report.costs.collectives.items()):
            between = f", {_mib(one.sent_between)} of it between slices" if one.sent_between else ""
            yield kind, f"{one.count:g} of {_mib(one.bytes)} in all; a device sends {_mib(one.sent)}{between}"
    if report.estimate is not None:
        e = report.estimate
        yield "seconds, on paper", f"{e.overlapped:.3g} (all at once, {e.bound_by} alone) to {e.in_turn:.3g} (in turn)"
        yield "", f"products {e.compute:.3g}, memory {e.memory:.3g}, links {e.links:.3g}, network {e.network:.3g}"
        yield "share of the peak", f"at most {e.share_overlapped:.0%}, in turn {e.share_in_turn:.0%}"
    yield "compiled in", f"{report.compile_seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.3f} T"

"""Renders a report as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steerling_jax.train.aot.chips import GIB
from steerling_jax.train.aot.report import Report


def as_json(report: Report) -> dict[str, Any]:
    """All fields of the report and the properties derived from them. Sizes are in bytes, times in seconds."""
    from steerling_jax.cli.console import plain

    body: dict[str, Any] = plain(report)
    body |= {"fits": report.fits, "work_over_model": report.work_over_model}
    body["model_flops"]["total"] = report.model_flops.total
    if report.estimate is not None:
        body["estimate"]["bound_by"] = report.estimate.bound_by
    return body


def print_report(report: Report) -> None:
    """Prints a table and a sentence that says whether the program fits."""
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
    """Whether the program fits, and by how much, in one or two sentences."""
    if report.shortage is not None:
        short = report.shortage
        return (
            f"It does not fit: it needs {short.needed / GIB:.2f} GiB of {short.available / GIB:.2f} GiB a device, "
            f"{short.missing / GIB:.2f} GiB too much. A smaller --batch-size or --rows needs less, as does a "
            "--mesh with larger fsdp or tensor."
        )
    assert report.memory is not None
    left = report.hbm - report.memory.peak
    return f"It fits; {left / GIB:.2f} of {report.hbm / GIB:.0f} GiB a device are left."


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{report.parameters / 1e9:.3f} G, {_gib(report.parameter_bytes)} on a device"
    if len(report.compiled_layers) > 1:
        depths = " and ".join(map(str, report.compiled_layers))
        yield "layers", f"{report.layers}, extrapolated from {depths} layers, which were compiled"
    if report.memory is not None:
        memory = report.memory
        yield "memory, peak", f"{_gib(memory.peak)} of {_gib(report.hbm)}"
        yield "  arguments", f"{_gib(memory.arguments)}, {_gib(memory.reused)} of them reused for results"
        yield "  temporaries", _gib(memory.temporaries)
    own = report.model_flops
    yield "FLOPs of the model", f"{_tera(own.total)} (concept module {own.concepts / own.total:.1%})"
    if report.costs is not None:
        yield "FLOPs, as compiled", f"{_tera(report.costs.flops)}, {report.work_over_model:.2f} times those"
        if report.kernel_flops:
            yield "", f"{_tera(report.kernel_flops)} of them in attention kernels, computed from the mask"
        yield "memory traffic", _gib(report.costs.memory)
        for kind, one in sorted(report.costs.collectives.items()):
            between = f", {_mib(one.sent_between)} of them between slices" if one.sent_between else ""
            yield kind, f"{one.count:g} calls, {_mib(one.bytes)} in all; a device sends {_mib(one.sent)}{between}"
    if report.estimate is not None:
        e = report.estimate
        bounds = f"{e.overlapped:.3g} (overlapped, bound by {e.bound_by}) to {e.in_turn:.3g} (one after the other)"
        yield "estimated seconds", bounds
        yield "", f"products {e.compute:.3g}, memory {e.memory:.3g}, links {e.links:.3g}, network {e.network:.3g}"
        shares = f"{e.share_overlapped:.0%} (overlapped) to {e.share_in_turn:.0%} (one after the other)"
        yield "share of the peak", shares
    yield "compiled in", f"{report.compile_seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.3f} T"

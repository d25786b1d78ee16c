"""Renders the tables of docs/results/compile.md as Markdown, from reports as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerling_jax.train.aot.chips import CHIPS, GIB

Entry = Mapping[str, Any]  # a program of matrix.toml, and its `report`
_NEGLIGIBLE = 2**20  # bytes


def tables(entries: Sequence[Entry]) -> str:
    """All tables and, below them, the versions and dates of the reports."""
    parts = [
        ("Memory of a device", _memory(entries)),
        ("Work and communication of a device", _work(entries)),
        ("Estimated time", _time(entries)),
        ("What the concept module costs", _concepts(entries)),
        ("Published figures of the chips", _chips()),
    ]
    shown = [f"### {title}\n\n{text}" for title, text in parts if text]
    return "\n\n".join([*shown, _provenance(entries)])


def _memory(entries: Sequence[Entry]) -> str:
    def row(name: str, r: Mapping[str, Any]) -> list[str]:
        mesh = ", ".join(f"{axis} {size}" for axis, size in r["mesh"].items() if size > 1)
        start = [name, f"{r['devices']}: {mesh}", f"{r['sequences']} × {r['seq_len']:,}"]
        if not r["fits"]:
            short = r["shortage"]
            return [*start, "", "", f"{short['needed'] / GIB:.1f}", f"no: {short['missing'] / GIB:.1f} too much"]
        memory = r["memory"]
        sizes = [f"{memory[part] / GIB:.2f}" for part in ("arguments", "temporaries", "peak")]
        return [*start, *sizes, f"yes, of {r['hbm'] / GIB:.0f}"]

    heads = ["program", "devices", "sequences or rows × context", "arguments, GiB", "temporaries", "peak", "fits"]
    return _table(heads, [row(entry["name"], entry["report"]) for entry in entries])


def _work(entries: Sequence[Entry]) -> str:
    def row(name: str, r: Mapping[str, Any]) -> list[str]:
        collectives = {kind: one for kind, one in r["costs"]["collectives"].items() if one["sent"] > _NEGLIGIBLE}
        sent = "; ".join(
            f"{kind} {one['sent'] / GIB:.3g} ({one['count']:,.0f})" for kind, one in sorted(collectives.items())
        )
        between = sum(one["sent_between"] for one in collectives.values())
        return [
            name,
            f"{r['model_flops']['total'] / 1e12:,.2f}",
            f"{r['costs']['flops'] / 1e12:,.2f}",
            f"{r['work_over_model']:.2f}",
            f"{r['costs']['memory'] / GIB:,.1f}",
            sent or "negligible",
            f"{between / GIB:.3g}" if between else "",
        ]

    heads = [
        "program",
        "TFLOPs of the model",
        "as compiled",
        "ratio",
        "memory traffic, GiB",
        "sent, GiB (calls)",
        "of them between slices",
    ]
    return _table(heads, [row(entry["name"], entry["report"]) for entry in entries if entry["report"]["fits"]])


def _time(entries: Sequence[Entry]) -> str:
    def row(name: str, r: Mapping[str, Any]) -> list[str]:
        e = r["estimate"]
        parts = [_milliseconds(e[part]) for part in ("compute", "memory", "links", "network")]
        return [
            name,
            *parts,
            f"{_milliseconds(e['overlapped'])} – {_milliseconds(e['in_turn'])}",
            e["bound_by"],
            f"{e['share_in_turn']:.0%} – {e['share_overlapped']:.0%}",
        ]

    heads = ["program", "products, ms", "memory", "links", "network", "step or pass", "bound by", "share of the peak"]
    return _table(heads, [row(entry["name"], entry["report"]) for entry in entries if entry["report"]["fits"]])


def _concepts(entries: Sequence[Entry]) -> str:
    by_name = {entry["name"]: entry["report"] for entry in entries}
    rows = []
    for entry in entries:
        with_them, without = by_name.get(entry.get("like", "")), entry["report"]
        if with_them is None or not (with_them["fits"] and without["fits"]):
            continue
        own = with_them["model_flops"]
        rows.append(
            [
                entry["like"],
                f"{(own['known'] + own['discovered']) / own['total']:.1%}",
                f"{with_them['costs']['flops'] / without['costs']['flops'] - 1:.1%}",
                f"{with_them['costs']['memory'] / without['costs']['memory'] - 1:.1%}",
                f"{(with_them['memory']['peak'] - without['memory']['peak']) / GIB:.2f} GiB",
            ]
        )
    heads = ["program", "share of the model's FLOPs", "more FLOPs, as compiled", "more traffic", "more peak memory"]
    return _table(heads, rows)


def _chips() -> str:
    rows = [
        [
            chip.name,
            f"{chip.flops / 1e12:,.0f}",
            f"{chip.hbm / GIB:.0f}",
            f"{chip.hbm_rate / 1e9:,.0f}",
            f"{chip.link_rate / 1e9:,.0f}",
            f"{chip.network_rate * 8 / 1e9:.0f}",
            str(chip.devices),
        ]
        for chip in CHIPS.values()
    ]
    heads = [
        "chip",
        "bfloat16 TFLOP/s",
        "HBM, GiB",
        "HBM, GB/s",
        "links, both ways, GB/s",
        "network, Gbit/s",
        "JAX devices",
    ]
    return _table(heads, rows)


def _provenance(entries: Sequence[Entry]) -> str:
    reports = [entry["report"] for entry in entries]
    kinds = {(r["versions"]["jax"], r["versions"]["libtpu"]) for r in reports}
    which = "; ".join(f"jax {jax}, libtpu {libtpu}" for jax, libtpu in sorted(kinds))
    days = sorted({r["date"] for r in reports})
    seconds = sum(r["compile_seconds"] for r in reports)
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
    return f"{which}; {when}; {seconds / 60:.0f} minutes to compile on two busy cores."


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""The tables and the picture of docs/results/autoencoders.md that are of bottlenecks, from docs/results/attach.json.

    python benchmarks/attach.py FOLDER --report      # writes the JSON file and the picture, and prints the tables

A test compares the page with these tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.io.pictures import open_picture

GOAL = 0.1  # nats a token, to which the power laws are extrapolated
FIELDS = ("k", "features", "rows", "steps", "kl_steps")

Entry = Mapping[str, Any]


def exponent(entries: Sequence[Entry], by: str) -> tuple[float, float] | None:
    """(α, where the cost is `GOAL`) of cost = a · by^(−α), by least squares of the logarithms; None for one value."""
    x = np.log([float(entry[by]) for entry in entries])
    y = np.log([float(entry["cost_nats"]) for entry in entries])
    if len(set(x)) < 2:
        return None
    slope, height = np.polyfit(x, y, 1)
    return -float(slope), math.exp((math.log(GOAL) - height) / slope)


def series(entries: Sequence[Entry], by: Sequence[str]) -> list[Entry]:
    """The largest set of points that differ in the fields `by` alone, sorted by them."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[name] for name in FIELDS if name not in by), []).append(entry)
    return sorted(max(groups.values(), key=len), key=lambda entry: tuple(entry[name] for name in by))


def table(entries: Sequence[Entry]) -> str:
    """The points as a Markdown table, and the fits."""
    lines = [
        "| k | features | rows | steps | KL steps | processor seconds | cost, nats | KL | same token | unused |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in sorted(entries, key=lambda entry: tuple(entry[name] for name in FIELDS)):
        cells = [f"{entry[name]:,}" for name in FIELDS]
        cells += [f"{entry['processor_seconds']:.0f}"]
        cells += [f"{entry['cost_nats']:.3f} ± {entry['cost_standard_error']:.3f}", f"{entry['divergence_nats']:.3f}"]
        cells += [f"{entry['agreement']:.1%}", f"{entry['dead']:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    for by in ("k", "features", "rows", "kl_steps"):
        of_field = series(entries, [by])
        fit = exponent(of_field, by)
        if fit is not None:
            rest = ", ".join(f"{name} {of_field[0][name]:,}" for name in FIELDS if name != by)
            lines.append(f"\n{by} ({rest}): cost ∝ {by}^−{fit[0]:.2f}, {GOAL} nats at {fit[1]:,.0f}")
    return "\n".join(lines)


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Draws the cost against each of k, features, rows and steps."""
    highest = max(entry["cost_nats"] + entry["cost_standard_error"] for entry in entries)
    labels = {"k": "k", "features": "features", "rows": "rows of text", "kl_steps": "steps of KL"}
    with open_picture(path, 10, 2.7) as picture:
        for ax, (by, label) in zip(picture.subplots(1, 4, sharey=True), labels.items(), strict=True):
            points = series(entries, [by])
            x, y = ([float(entry[name]) for entry in points] for name in (by, "cost_nats"))
            errors = [float(entry["cost_standard_error"]) for entry in points]
            ax.errorbar(x, y, errors, marker=".", color="#0072b2", linewidth=1)
            ax.axhline(GOAL, color="#999999", linestyle=":", linewidth=1)
            ax.set_ylim(0, 1.1 * highest)
            ax.set_xscale("log")
            ax.set_xticks(x, [f"{value:,.0f}" for value in x])
            ax.minorticks_off()
            rest = ", ".join(f"{points[0][name]:,} {labels[name]}" for name in labels if name != by)
            ax.set_title(rest, fontsize=6, loc="left")
            ax.set_xlabel(label)
            if by == "k":
                ax.set_ylabel("cost, nats a token")

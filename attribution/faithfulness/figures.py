"""Figures with intervals, and tables of them: what every part of the faithfulness report gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from steerling_jax.evaluation.intervals import Estimate, bootstrap

HEADER = ["figure", "of", "value", "95 %", "n"]


def entry(figure: str, of: str, found: Estimate, better: str = "") -> dict[str, Any]:
    """One figure as JSON has it. better: "higher", "lower", or "" where neither is."""
    return {
        "figure": figure, "of": of, "mean": _number(found.mean), "low": _number(found.low), "high": _number(found.high),
        "n": found.values, "better": better,
    }  # fmt: skip


def estimate(figure: str, of: str, values: Any, key: jax.Array, better: str = "") -> dict[str, Any]:
    """The mean of values (n,), one a unit that was drawn for itself (a prompt, say); NaN is left out."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return entry(figure, of, bootstrap(lambda rows: float(values[rows].mean()), len(values), key), better)


def ratio(
    figure: str, of: str, numerator: np.ndarray, denominator: np.ndarray, key: jax.Array, better: str = ""
) -> dict[str, Any]:
    """Σ numerator / Σ denominator over units (n,) each."""

    def statistic(rows: np.ndarray) -> float:
        total = denominator[rows].sum()
        return float(numerator[rows].sum() / total) if total else math.nan

    return entry(figure, of, bootstrap(statistic, len(numerator), key), better)


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """A part's figures as rows of text, header first."""
    rows = [HEADER]
    for f in result["figures"]:
        interval = "" if None in (f["low"], f["high"]) else f"{f['low']:.3f} … {f['high']:.3f}"
        rows.append([f["figure"], f["of"], "–" if f["mean"] is None else f"{f['mean']:.3f}", interval, f"{f['n']:,}"])
    return rows


def markdown(result: Mapping[str, Any]) -> list[str]:
    """The same as the lines of a Markdown table."""
    header, *rows = table(result)
    rows = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

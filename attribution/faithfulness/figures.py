"""Figures with confidence intervals, and tables of them: the output of every part of the faithfulness report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from steerling_jax.evaluation.intervals import Estimate, bootstrap

HEADER = ["figure", "of", "value", "95 %", "n"]


def figure_entry(figure: str, of: str, estimate: Estimate, better: str = "") -> dict[str, Any]:
    """A figure as a JSON object. better: "higher", "lower", or "" if neither is better."""
    return {
        "figure": figure,
        "of": of,
        "mean": _finite(estimate.mean),
        "low": _finite(estimate.low),
        "high": _finite(estimate.high),
        "n": estimate.values,
        "better": better,
    }


def mean_figure(figure: str, of: str, values: Any, key: jax.Array, better: str = "") -> dict[str, Any]:
    """The mean of values (n,), one per independently drawn unit (a prompt, for example); NaN values are ignored."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return figure_entry(figure, of, bootstrap(lambda rows: float(values[rows].mean()), len(values), key), better)


def ratio_figure(
    figure: str, of: str, numerator: np.ndarray, denominator: np.ndarray, key: jax.Array, better: str = ""
) -> dict[str, Any]:
    """Σ numerator / Σ denominator over units, (n,) each."""

    def ratio(rows: np.ndarray) -> float:
        total = denominator[rows].sum()
        return float(numerator[rows].sum() / total) if total else math.nan

    return figure_entry(figure, of, bootstrap(ratio, len(numerator), key), better)


def text_table(result: Mapping[str, Any]) -> list[list[str]]:
    """The figures of a part as rows of text cells, header first."""
    rows = [HEADER]
    for f in result["figures"]:
        interval = "" if None in (f["low"], f["high"]) else f"{f['low']:.3f} … {f['high']:.3f}"
        rows.append([f["figure"], f["of"], "–" if f["mean"] is None else f"{f['mean']:.3f}", interval, f"{f['n']:,}"])
    return rows


def markdown_table(result: Mapping[str, Any]) -> list[str]:
    """The figures of a part as the lines of a Markdown table."""
    header, *rows = text_table(result)
    rows = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None

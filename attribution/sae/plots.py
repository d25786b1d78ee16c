"""Pictures of `steerling sae`: overlaps as a heat map with the growth of coverage, the F1 of classifiers, and what
covers target features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.io.pictures import open_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steerling_jax.attribution.sae.compare import Comparison


def plot_comparison(comparison: Comparison, path: Path, title: str) -> None:
    """Writes two heat maps of matched overlaps, of features and of n-grams, and the growth of coverage."""
    names = [one.name for one in comparison.collections]
    side = max(3.2, 0.45 * len(names) + 1.6)
    with open_picture(path, 3 * side, side + 0.4, title, frame=True) as figure:
        features, ngrams, growth = figure.subplots(1, 3)
        draw_heat_map(features, comparison.matched.mean.of_row, names, names)
        features.set_title("share of the row's features in the column's", fontsize=8, loc="left")
        draw_heat_map(ngrams, comparison.ngrams.mean.of_row, names, names)
        ngrams.set_title("the same of word n-grams", fontsize=8, loc="left")
        for one in comparison.collections:
            growth.plot(list(one.growth), list(one.growth.values()), label=one.name, linewidth=1)
        growth.set_xscale("log")
        growth.set_xlabel("samples")
        growth.set_title("features of so many samples", fontsize=8, loc="left")
        growth.legend(frameon=False, fontsize=6)


def draw_heat_map(ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A table of shares (rows, columns) from 0 to 1, as colours with their numbers; NaN stays white."""
    ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="white" if value > 0.6 else "black"
            )


def plot_scores(scores: Mapping[str, Mapping[str, Estimate]], path: Path, title: str) -> None:
    """Writes the F1 of each method, with its interval, a panel for each class. scores: by class and method."""
    classes = list(scores)
    methods = list(scores[classes[0]])
    height = 0.8 + len(classes) * (0.17 * len(methods) + 0.5)
    with open_picture(path, 6.5, height, title, frame=True) as figure:
        axes = np.atleast_1d(figure.subplots(len(classes), 1, sharex=True))
        for ax, name in zip(axes, classes, strict=True):
            estimates = [scores[name][method] for method in methods]
            means = np.array([one.mean for one in estimates])
            spread = [[max(0.0, one.mean - one.low) for one in estimates],
                      [max(0.0, one.high - one.mean) for one in estimates]]  # fmt: skip
            ax.barh(range(len(methods)), means, xerr=spread, color="#0072b2", alpha=0.6, capsize=2)
            ax.set_yticks(range(len(methods)), methods)
            ax.invert_yaxis()
            ax.set_xlim(0, 1.02)
            ax.set_title(f"F1: {name}", fontsize=8, loc="left")


def plot_cover(report: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes the share of texts in which each target fires and, where a generator was asked, the missed targets by the
    number of texts of each origin. report: the figures of `steerling sae cover`."""
    targets = report["targets"]
    synthesis = report.get("synthesis")
    drawn = synthesis is not None and synthesis["features"]
    height = max(2.4, 0.16 * len(targets) + 0.9)
    with open_picture(path, 8.0 if drawn else 4.5, height, title) as figure:
        axes = np.atleast_1d(figure.subplots(1, 2 if drawn else 1))
        names = [f"{one['feature']} {one['name'] or ''}"[:32].strip() for one in targets]
        # A target that is missed still has a mark, at 0.
        axes[0].barh(range(len(targets)), [one["share"] for one in targets], color="#0072b2")
        missed = [i for i, one in enumerate(targets) if not one["covered"]]
        axes[0].plot([targets[i]["share"] for i in missed], missed, "x", color="#d55e00", label="missed", clip_on=False)
        axes[0].set_yticks(range(len(targets)), names, fontsize=6)
        axes[0].invert_yaxis()
        axes[0].set_title("share of texts in which it fires", fontsize=8, loc="left")
        if missed:
            axes[0].legend(frameon=False, fontsize=6)
        if synthesis is not None and drawn:
            _draw_arms(axes[1], synthesis)


def _draw_arms(ax: Axes, synthesis: Mapping[str, Any]) -> None:
    """The number of missed targets that fire, by the number of calls or of natural texts."""
    for arm, own in synthesis["arms"].items():
        ax.step(range(len(own["curve"])), own["curve"], where="post", label=arm, linewidth=1)
    if "natural" in synthesis:
        natural = synthesis["natural"]
        ax.plot(range(len(natural["curve"])), natural["curve"], "--", label="natural texts", linewidth=1, color="black")
    ax.set_ylim(0, len(synthesis["features"]) + 0.5)
    ax.set_xlabel("calls")
    ax.set_title(f"of {len(synthesis['features'])} missed targets, those that fire", fontsize=8, loc="left")
    ax.legend(frameon=False, fontsize=6)

"""The picture of a run of autoencoders: what training did to each layer, and how good they are on held-out text.

The numbers are those of `metrics.jsonl`; the same file gives the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerling_jax.io.pictures import open_picture
from steerling_jax.train.autoencoders.evaluate import DENSITY_BINS
from steerling_jax.train.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "training.svg"


def draw_run(out: Path) -> None:
    """Writes `training.svg` in the run's folder, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    lines = [json.loads(line) for line in (out / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    figures = {name: value for name, value in lines[-1].items() if isinstance(value, dict)}
    with open_picture(out / PICTURE, 10, 6) as picture:
        panels = picture.subplots(2, 3).ravel()
        for axes, name, title in (
            (panels[0], "unexplained", "unexplained variance of the rows of a step"),
            (panels[1], "dead", "share of dead latents"),
        ):
            _draw_steps(axes, steps, list(figures), name)
            axes.set_title(title, loc="left", fontsize=8)
        panels[0].set_ylim(0, 1)
        panels[0].legend(frameon=False)
        _draw_densities(panels[2], figures)
        _draw_bars(panels[3], figures, {"unexplained": "unexplained", "dead": "dead"}, "held-out: shares")
        recovered = {f"loss_recovered_against_{name}": f"against {name}" for name in ("zero", "mean")}
        _draw_bars(panels[4], figures, recovered, "held-out: loss recovered")
        _draw_bars(panels[5], figures, {"l0": "latents a row"}, "held-out: L0")


def _draw_steps(axes: Axes, steps: list[dict[str, Any]], layers: list[str], name: str) -> None:
    """A line for each layer over the steps."""
    for layer in layers:
        axes.plot([one["step"] for one in steps], [one[f"{layer}/{name}"] for one in steps], label=layer, linewidth=1)
    axes.set_xlabel("step")


def _draw_densities(axes: Axes, figures: dict[str, Any]) -> None:
    """How many latents are kept at which share of the held-out rows."""
    middles = np.sqrt(np.asarray(DENSITY_BINS[1:]) * np.asarray(DENSITY_BINS[:-1]))
    for layer, values in figures.items():
        axes.step(middles, values["density_histogram"], where="mid", label=layer, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("share of the held-out rows in which a latent is kept")
    axes.set_title("latents by density", loc="left", fontsize=8)


def _draw_bars(axes: Axes, figures: dict[str, Any], names: dict[str, str], title: str) -> None:
    """Bars of held-out figures, a group for each layer."""
    places, width = np.arange(len(figures)), 0.8 / len(names)
    for i, (name, label) in enumerate(names.items()):
        bars = axes.bar(places + i * width, [one[name] for one in figures.values()], width, label=label)
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    axes.set_xticks(places + width * (len(names) - 1) / 2, list(figures))
    axes.set_title(title, loc="left", fontsize=8)
    if len(names) > 1:
        axes.legend(frameon=False)

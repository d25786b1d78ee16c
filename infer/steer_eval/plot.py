"""The plot of the steering evaluation: figures by strength, for the concept's direction and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.evaluation.intervals import Estimate
from steerling_jax.infer.steer_eval.text_specs import (
    AGAIN,
    AMPLIFY,
    CONCEPT,
    DESCRIBED,
    NOTHING,
    RANDOM,
    SUPPRESS,
    SUPPRESSED,
    WORDS,
    Condition,
)
from steerling_jax.io.pictures import open_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = Mapping[Condition, Mapping[str, Estimate]]

_PANELS = {
    "found": "texts in which the probe finds the concept",
    "lifted_gain": "gain in the log-probability of its lifted tokens, nats",
    "others_change": "change of unrelated concepts' scores",
    "nats_per_token": "nats a token under the unsteered model",
    "repeated_3": "repeated 3-grams",
}
_CURVES = {CONCEPT: ("#0072b2", "o"), RANDOM: ("#999999", "s")}
_LEVELS = {
    NOTHING: ("black", "-"),
    AGAIN: ("black", ":"),
    DESCRIBED: ("#e69f00", "--"),
    WORDS: ("#d55e00", "-."),
}


def plot(figures: Figures, path: Path, title: str) -> None:
    """Writes the plot. figures: by condition, of all concepts together. The same figures give the same bytes."""
    with open_picture(path, 10, 6, title) as plot_figure:
        axes = plot_figure.subplots(2, 3).ravel()
        for ax, (figure, label) in zip(axes, _PANELS.items()):
            _draw_strengths(ax, figures, figure)
            ax.set_title(label, fontsize=8, loc="left")
        _draw_suppression(axes[len(_PANELS)], figures)
        handles, labels = axes[0].get_legend_handles_labels()
        plot_figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)


def _draw_strengths(ax: Axes, figures: Figures, figure: str) -> None:
    """A curve over the strengths for the concept's and the random direction, a line for conditions without a
    strength."""
    for name, (colour, marker) in _CURVES.items():
        by_strength = {
            c.strength: f[figure]
            for c, f in figures.items()
            if c[:2] == (AMPLIFY, name) and c.strength is not None and figure in f
        }
        strengths, estimates = list(by_strength), list(by_strength.values())
        ax.plot(strengths, [e.mean for e in estimates], color=colour, marker=marker, markersize=4, label=name)
        ax.fill_between(
            strengths, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.2, linewidth=0
        )
        ax.set_xscale("log", base=2)
        ax.set_xticks(strengths, [f"{s:g}" for s in strengths], minor=False)
        ax.minorticks_off()
    for name, (colour, style) in _LEVELS.items():
        estimate = figures.get(Condition(AMPLIFY, name), {}).get(figure)
        if estimate is not None:
            ax.axhline(estimate.mean, color=colour, linestyle=style, linewidth=1, label=name)
    ax.set_xlabel("strength")
    if figure == "found":
        ax.set_ylim(-0.02, 1.02)


def _draw_suppression(ax: Axes, figures: Figures) -> None:
    """A bar for each condition: the share of texts in which the suppressed concept is found."""
    names = {NOTHING: "black", SUPPRESSED: _CURVES[CONCEPT][0], RANDOM: _CURVES[RANDOM][0]}
    for x, (name, colour) in enumerate(names.items()):
        estimate = figures.get(Condition(SUPPRESS, name), {}).get("found")
        if estimate is not None:
            spread = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
            bar = ax.bar(x, estimate.mean, yerr=spread, color=colour, alpha=0.6, capsize=3)
            ax.bar_label(bar, fmt="%.2f", padding=2)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 1.1)
    ax.set_title("prompts with the concept: texts in which it is found", fontsize=8, loc="left")

"""What the runs of `scaling.py` say: exponents of the loss side by side, and each interpretability figure against size.

    python benchmarks/scaling_report.py FOLDER [--svg docs/scaling.svg] [--json]

Loss is held-out nats a token (the likelihood bound), fitted as a · x^(−α) by least squares of the logarithms over the
means of each size's seeds. The intervals come from the seeds: their deviation is pooled over sizes and arms, and means
are drawn again with it, 2,000 times. They say nothing about how well a straight line fits; `residual` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import read_json_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARMS = ("concepts", "bare")
COLOURS = {"concepts": "#0072b2", "bare": "#999999"}
DRAWS = 2000
COSTS = {"cost_epsilon": "ε", "cost_known": "known", "cost_discovered": "discovered"}

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Exponent:
    """α of a · x^(−α), the ends of its 95 % interval, and the root mean square of the logarithms' distances."""

    alpha: float
    low: float
    high: float
    residual: float


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the least-squares line through x (n,) and each row of y (…, n)."""
    x = x - x.mean()
    return (y - y.mean(axis=-1, keepdims=True)) @ x / (x @ x)


def pooled_deviation(groups: Sequence[np.ndarray]) -> float:
    """The deviation within the groups, as one number for all; NaN where no group has two values."""
    squares = sum(float(np.sum((g - g.mean()) ** 2)) for g in groups)
    free = sum(len(g) - 1 for g in groups)
    return (squares / free) ** 0.5 if free else float("nan")


def exponents(x: Mapping[str, np.ndarray], losses: Mapping[str, list[np.ndarray]]) -> dict[str, Exponent]:
    """Of each arm, and under `difference` the second's from the first's: x (sizes,), losses of each size's seeds."""
    logs = {arm: [np.log(group) for group in groups] for arm, groups in losses.items()}
    deviation = pooled_deviation([group for groups in logs.values() for group in groups])
    random, found, drawn = np.random.default_rng(0), {}, {}
    for arm, groups in logs.items():
        at, means = np.log(x[arm]), np.array([group.mean() for group in groups])
        error = deviation / np.sqrt([len(group) for group in groups])
        alpha = -float(slope(at, means))
        drawn[arm] = -slope(at, means + error * random.standard_normal((DRAWS, len(means))))
        residual = float(np.std(means - means.mean() + alpha * (at - at.mean())))
        found[arm] = Exponent(alpha, *_interval(drawn[arm]), residual)
    first, second = losses
    apart = drawn[first] - drawn[second]
    alpha = found[first].alpha - found[second].alpha
    found["difference"] = Exponent(alpha, *_interval(apart), float("nan"))
    return found


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def by_size(entries: Sequence[Entry], arm: str) -> list[list[Entry]]:
    """The arm's runs, those of one size together, the smallest first."""
    mine = [e for e in entries if e["arm"] == arm]
    return [[e for e in mine if e["width"] == width] for width in sorted({e["width"] for e in mine})]


def figure(entry: Entry, name: str) -> float:
    """A figure by name; `auc` and the probes are those of concept detection."""
    detection = next(iter(entry["figures"].get("detection", {}).values()), {})
    value = entry["figures"].get(name, detection.get(name))
    return float("nan") if value is None else float(value)


def weights_of(entry: Entry) -> float:
    """Parameters of the backbone: layers and vocabulary, the same in both arms."""
    return float(entry["weights"]["layers"] + entry["weights"]["vocabulary"])


def fits(entries: Sequence[Entry]) -> dict[str, dict[str, Exponent]]:
    sizes = {arm: by_size(entries, arm) for arm in ARMS}
    losses = {arm: [np.array([figure(e, "nats_per_token") for e in runs]) for runs in sizes[arm]] for arm in ARMS}
    scales = {"FLOPs": lambda e: e["flops"], "parameters of the backbone": weights_of}
    return {
        name: exponents({arm: np.array([scale(runs[0]) for runs in sizes[arm]]) for arm in ARMS}, losses)
        for name, scale in scales.items()
    }


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the smallest and largest of several."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def tables(entries: Sequence[Entry]) -> str:
    lines = ["| width, layers | parameters | FLOPs | tokens (with, without) | seeds | nats a token with | without |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for ours, bare in zip(by_size(entries, "concepts"), by_size(entries, "bare")):
        a, b = ours[0], bare[0]
        nats = (spread([figure(e, "nats_per_token") for e in runs], 3) for runs in (ours, bare))
        size = f"{a['width']}, {a['layers']} | {weights_of(b) / 1e6:.2f} M + {a['weights']['concepts'] / 1e6:.2f} M"
        tokens = f"{a['tokens'] / 1e6:.2f} M, {b['tokens'] / 1e6:.2f} M"
        lines += [f"| {size} | {a['flops']:.2g} | {tokens} | {len(ours)} | {' | '.join(nats)} |"]
    lines += ["", "| α of loss ~ x^(−α) | with | without | difference | residuals of log loss |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, found in fits(entries).items():
        cells = [f"{e.alpha:.3f} ({e.low:.3f} to {e.high:.3f})" for e in found.values()]
        rest = ", ".join(f"{found[arm].residual:.3f}" for arm in ARMS)
        lines += [f"| x: {name} | {' | '.join(cells)} | {rest} |"]
    lines += [
        "",
        "| width | detection AUC | net concept share | nats more without ε | without known | without discovered |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for runs in by_size(entries, "concepts"):
        cells = [spread([figure(e, name) for e in runs], 3) for name in ("auc", "concept_share")]
        cells += [spread([figure(e, name) for e in runs], 2) for name in COSTS]
        lines += [f"| {runs[0]['width']} | {' | '.join(cells)} |"]
    for name in ("probe_visible_text", "probe_whole_text"):
        scores = [score for e in entries if not np.isnan(score := figure(e, name))]
        lines += [f"\n{name.replace('_', ' ')}: AUC {scores[0]:.3f}"] if scores else []
    return "\n".join(lines)


def plot(entries: Sequence[Entry], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"svg.hashsalt": "steerling", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    ):
        picture = Figure(figsize=(10, 2.9), layout="constrained")
        loss, auc, share, cost = picture.subplots(1, 4)
        _losses(loss, entries)
        runs = [e for e in entries if e["arm"] == "concepts"]
        size = [weights_of(e) for e in runs]
        _dots(auc, size, [figure(e, "auc") for e in runs], COLOURS["concepts"], "model")
        for name, style in (("probe_visible_text", "--"), ("probe_whole_text", ":")):
            scores = [s for e in runs if not np.isnan(s := figure(e, name))]
            if scores:
                auc.axhline(scores[0], color="black", linestyle=style, linewidth=1, label=name.replace("_", " "))
        _dots(share, size, [figure(e, "concept_share") for e in runs], COLOURS["concepts"], "known + discovered")
        for (name, label), colour in zip(COSTS.items(), ("#d55e00", "#0072b2", "#009e73")):
            _dots(cost, size, [figure(e, name) for e in runs], colour, f"without {label}")
        titles = ("held-out nats a token", "concept detection, AUC", "net concept share of logits", "nats a token more")
        for ax, title in zip((loss, auc, share, cost), titles):
            ax.set_title(title, fontsize=8, loc="left")
            ax.set_xlabel("training FLOPs" if ax is loss else "parameters of the backbone")
            ax.legend(frameon=False, fontsize=7)
        with atomic_path(path) as scratch:
            picture.savefig(scratch, metadata={"Date": None})


def _losses(ax: Axes, entries: Sequence[Entry]) -> None:
    found = fits(entries)["FLOPs"]
    for arm in ARMS:
        sizes = by_size(entries, arm)
        mine = [e for runs in sizes for e in runs]
        at = np.array([runs[0]["flops"] for runs in sizes])
        means = np.array([np.mean([np.log(figure(e, "nats_per_token")) for e in runs]) for runs in sizes])
        label = f"{'with' if arm == 'concepts' else 'without'} concepts, α = {found[arm].alpha:.3f}"
        ax.plot([e["flops"] for e in mine], [figure(e, "nats_per_token") for e in mine], ".", color=COLOURS[arm])
        line = np.exp(means.mean() - found[arm].alpha * (np.log(at) - np.log(at).mean()))
        ax.plot(at, line, color=COLOURS[arm], linewidth=1, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")


def _dots(ax: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    ax.plot(x, y, ".", color=colour, label=label)
    ax.set_xscale("log")
    ax.set_xticks(sorted(set(x)), [f"{size / 1e6:.2g} M" for size in sorted(set(x))])
    ax.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of scaling.py")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw a picture (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="the fits alone, as JSON")
    args = parser.parse_args()
    entries = read_json_array(args.folder / "results.json")
    found = fits(entries)
    if args.json:
        print(json.dumps({x: {name: vars(e) for name, e in fit.items()} for x, fit in found.items()}, indent=1))
    else:
        print(tables(entries))
    if args.svg is not None:
        plot(entries, args.svg)


if __name__ == "__main__":
    main()

"""Report of the scaling study: scaling exponents with and without concepts, and interpretability figures by size.

    python benchmarks/scaling_report.py FOLDER [--svg docs/results/scaling.svg] [--json]

FOLDER is that of `scaling.py`; nothing is trained. The loss is the held-out likelihood bound in nats per token, fitted
as a · x^(−α) by least squares of the logarithms, over the means of each size's seeds. The intervals are 95 % and only
reflect the seeds: their deviation is pooled over sizes and arms, and the means are resampled with it 2,000 times. How
well a power law fits at all is the `residual`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerling_jax.io.json_files import read_json_array
from steerling_jax.io.pictures import open_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARMS = ("concepts", "bare")
COLOURS = {"concepts": "#0072b2", "bare": "#999999"}
DRAWS = 2000
COSTS = {"cost_epsilon": "ε", "cost_known": "known", "cost_discovered": "discovered"}

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Exponent:
    """The exponent α of a · x^(−α), its 95 % interval, and the root mean square residual of the log loss."""

    alpha: float
    low: float
    high: float
    residual: float


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (…,) of the least-squares lines through x (n,) and each row of y (…, n)."""
    x = x - x.mean()
    return (y - y.mean(axis=-1, keepdims=True)) @ x / (x @ x)


def pooled_deviation(groups: Sequence[np.ndarray]) -> float:
    """The standard deviation within groups, pooled over all of them; NaN if no group has two values."""
    squares = sum(float(np.sum((g - g.mean()) ** 2)) for g in groups)
    free = sum(len(g) - 1 for g in groups)
    return (squares / free) ** 0.5 if free else float("nan")


def exponents(x: Mapping[str, np.ndarray], losses: Mapping[str, list[np.ndarray]]) -> dict[str, Exponent]:
    """The exponent of each arm and, as "difference", that of the first minus that of the second.

    x (sizes,) per arm; losses: for each arm and size, an array over seeds.
    """
    logs = {arm: [np.log(group) for group in groups] for arm, groups in losses.items()}
    deviation = pooled_deviation([group for groups in logs.values() for group in groups])
    random, results, drawn = np.random.default_rng(0), {}, {}
    for arm, groups in logs.items():
        at, means = np.log(x[arm]), np.array([group.mean() for group in groups])
        error = deviation / np.sqrt([len(group) for group in groups])
        alpha = -float(slope(at, means))
        drawn[arm] = -slope(at, means + error * random.standard_normal((DRAWS, len(means))))
        residual = float(np.std(means - means.mean() + alpha * (at - at.mean())))
        results[arm] = Exponent(alpha, *_interval(drawn[arm]), residual)
    first, second = losses
    differences = drawn[first] - drawn[second]
    alpha = results[first].alpha - results[second].alpha
    results["difference"] = Exponent(alpha, *_interval(differences), float("nan"))
    return results


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def by_size(entries: Sequence[Entry], arm: str) -> list[list[Entry]]:
    """The runs of an arm, grouped by size, smallest first."""
    runs = [e for e in entries if e["arm"] == arm]
    return [[e for e in runs if e["width"] == width] for width in sorted({e["width"] for e in runs})]


def figure(entry: Entry, name: str) -> float:
    """A figure of a run by name, also those of concept detection (`auc` and the probes); NaN if it is missing."""
    detection = next(iter(entry["figures"].get("detection", {}).values()), {})
    value = entry["figures"].get(name, detection.get(name))
    return float("nan") if value is None else float(value)


def weights_of(entry: Entry) -> float:
    """Number of parameters of the backbone (layers and token embedding), the same in both arms."""
    return float(entry["weights"]["layers"] + entry["weights"]["vocabulary"])


def fits(entries: Sequence[Entry]) -> dict[str, dict[str, Exponent]]:
    """The exponents against training FLOPs and against the backbone's parameters."""
    sizes = {arm: by_size(entries, arm) for arm in ARMS}
    losses = {arm: [np.array([figure(e, "nats_per_token") for e in runs]) for runs in sizes[arm]] for arm in ARMS}
    scales = {"FLOPs": lambda e: e["flops"], "parameters of the backbone": weights_of}
    return {
        name: exponents({arm: np.array([scale(runs[0]) for runs in sizes[arm]]) for arm in ARMS}, losses)
        for name, scale in scales.items()
    }


def spread(values: Sequence[float], digits: int) -> str:
    """The mean as text, followed by the smallest and largest value in brackets if there are several."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def tables(entries: Sequence[Entry]) -> str:
    """The Markdown tables of docs/results/scaling.md."""
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
    for name, fit in fits(entries).items():
        cells = [f"{e.alpha:.3f} ({e.low:.3f} to {e.high:.3f})" for e in fit.values()]
        residuals = ", ".join(f"{fit[arm].residual:.3f}" for arm in ARMS)
        lines += [f"| x: {name} | {' | '.join(cells)} | {residuals} |"]
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
    """Draws loss, concept detection, concept share and the cost of removals against size, as an SVG file."""
    with open_picture(path, 10, 2.9) as picture:
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
        shares = "net concept share of true tokens' logits"
        titles = ("held-out nats a token", "concept detection, AUC", shares, "nats a token more")
        for ax, title in zip((loss, auc, share, cost), titles):
            ax.set_title(title, fontsize=8, loc="left")
            ax.set_xlabel("training FLOPs" if ax is loss else "parameters of the backbone")
            ax.legend(frameon=False, fontsize=7)


def _losses(ax: Axes, entries: Sequence[Entry]) -> None:
    """Held-out loss of every run against FLOPs, with the fitted power law of each arm."""
    fit = fits(entries)["FLOPs"]
    for arm in ARMS:
        sizes = by_size(entries, arm)
        runs_of_arm = [e for runs in sizes for e in runs]
        at = np.array([runs[0]["flops"] for runs in sizes])
        means = np.array([np.mean([np.log(figure(e, "nats_per_token")) for e in runs]) for runs in sizes])
        label = f"{'with' if arm == 'concepts' else 'without'} concepts, α = {fit[arm].alpha:.3f}"
        losses = [figure(e, "nats_per_token") for e in runs_of_arm]
        ax.plot([e["flops"] for e in runs_of_arm], losses, ".", color=COLOURS[arm])
        line = np.exp(means.mean() - fit[arm].alpha * (np.log(at) - np.log(at).mean()))
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
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of scaling.py")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw a picture (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="the fits alone, as JSON")
    args = parser.parse_args()
    entries = read_json_array(args.folder / "results.json")
    if args.json:
        fitted = {x: {name: vars(e) for name, e in fit.items()} for x, fit in fits(entries).items()}
        print(json.dumps(fitted, indent=1))
    else:
        print(tables(entries))
    if args.svg is not None:
        plot(entries, args.svg)


if __name__ == "__main__":
    main()

"""The tables of docs/results/one-roof.md, written from docs/results/one-roof.json.

    python -m benchmarks.one_roof_report

A test compares the page with these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.results_page import interval, table, write_page
from steerling_jax.evaluation.intervals import Estimate, bootstrap_mean

DETECTORS = (
    "known concept", "best discovered concept", "best feature of the last block", "best feature of all blocks",
    "feature with the largest difference of firing", "best random direction", "difference of means",
    "logistic regression, last block", "logistic regression, words",
)  # fmt: skip
CONTROLS = {"own": "itself", "other": "another of that length", "random": "a random direction of that length"}
KINDS = {"known": "known concept", "discovered": "best discovered concept", "feature": "best feature, last block"}
NAMES = {
    "known, given names": "known concepts, by the names given to them",
    "known": "known concepts, by words",
    "discovered": "discovered concepts, by words",
    "features 0": "features of block 0, by words",
    "features 1": "features of block 1, by words",
    "features 2": "features of block 2, by words",
    "features 3": "features of block 3, by words",
}
CONCEPT, FEATURE = "built-in concept", "feature"
# Of docs/results/training.md, the third and fourth stage on idle cores: 2.0 M tokens at 11,000 a second and 4.1 M at
# 3,900 (the second stage, without concepts: 4,800), and 3.452 nats a token after 3.302.
STAGES = {"seconds": 2.0e6 / 11_000 + 4.1e6 / 3_900, "cores": 2, "nats": 3.452 - 3.302}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by the name of their place."""
    parts = {"roof": roof(results)}
    parts["detection"] = detection(results["detect"])
    parts["differences"] = differences(results["detect"])
    parts["removal"] = removal(results["remove"])
    parts["steering"] = steering(results["steer"]["arms"])
    parts["doses"] = steering(results["steer"]["tuning"])
    parts["names"] = names(results["names"])
    parts["cost"] = cost(results["train"])
    if "before" in results:
        parts["before"] = before(results["detect"], results["before"])
    return parts


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean with its interval over concepts."""
    found = bootstrap_mean([np.asarray(values, np.float64)], jax.random.key(0))
    assert found is not None
    return found


def over_texts(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean over concepts of the mean over texts, with its interval over texts."""
    found = bootstrap_mean([np.asarray(group, np.float64) for group in groups], jax.random.key(0))
    assert found is not None
    return found


def shown(one: Estimate, digits: int = 2) -> str:
    return interval(one._asdict(), digits)


def roof(results: Mapping[str, Any]) -> str:
    """One row for each question, one column for each kind of concept, and the best control."""
    areas = {name: estimate(values) for name, values in results["detect"]["areas"].items()}
    rows = [["detection of labels, AUC", *(shown(areas[name]) for name in DETECTORS[:3]),
             f"logistic regression on its rows {shown(areas['logistic regression, last block'])}"]]  # fmt: skip
    costs = results["remove"]["costs"]
    for place, text in (("with", "removal at positions with the label, nats"), ("without", "… at other positions")):
        own = [shown(estimate(cost_of(costs, place, kind, "own")), 3) for kind in KINDS]
        control = shown(estimate(cost_of(costs, place, "known", "other")), 3)
        rows.append([text, *own, f"discovered concept as long as the known one {control}"])
    arms = {arm["name"]: arm for arm in results["steer"]["arms"]}
    best = {kind: next(arm for name, arm in arms.items() if name.startswith(kind)) for kind in (CONCEPT, FEATURE)}
    found = {kind: shown(over_texts(arm["found"])) for kind, arm in best.items()}
    others = [arm for name, arm in arms.items() if name.startswith(("prompt", "difference"))]
    control = max(others, key=lambda arm: over_texts(arm["found"]).mean)
    rows.append(["steered texts with the concept, at most 0.3 nats a token", found[CONCEPT], "", found[FEATURE],
                 f"{control['name']} {shown(over_texts(control['found']))}"])  # fmt: skip
    kinds = [results["names"][one] for one in ("known", "discovered", "features 3")]
    others = ", ".join(f"{mean_of_others(one):.2f}" for one in kinds)
    rows.append(["names with an AUC of at least 0.8", *map(share, kinds), f"names of others have an AUC of {others}"])
    built_in = f"+{STAGES['nats']:.2f} nats a token, {STAGES['seconds'] / 60:.0f} minutes"
    rows.append(["cost in training", built_in, "the same", f"{results['train']['processor_seconds']} processor seconds",
                 ""])  # fmt: skip
    return table(["", "known concepts", "discovered concepts", "features of the last block", "control"], rows)


def share(one: Mapping[str, Any]) -> str:
    return f"{one['good']} of {one['read']} ({one['good'] / one['read']:.0%})"


def cost(trained: Mapping[str, Any]) -> str:
    """What both kinds cost in training and in loss."""
    layers = trained["evaluation"]
    rise = [layers[name]["losses"]["reconstructed"] - layers[name]["losses"]["model"]
            for name in sorted(layers) if name.startswith("layer")]  # fmt: skip
    recovered = layers[f"layer{len(rise) - 1}"]["loss_recovered_against_zero"]
    rows = [
        ["labels", "of the whole training split", "none"],
        ["training", f"{STAGES['seconds'] / 60:.0f} minutes of {STAGES['cores']} idle cores: third and fourth stage",
         f"{trained['processor_seconds']} processor seconds for {len(rise)} blocks"],
        ["speed", "3,900 tokens/s in the fourth stage, without concepts 4,800", "the model is not trained"],
        ["loss of the model, nats a token", f"+{STAGES['nats']:.2f}, at more training", "0"],
        ["loss when nothing else is read", "the same: the bottleneck is strict",
         f"+{rise[-1]:.2f} ({recovered:.0%} recovered), last block"],
    ]  # fmt: skip
    return table(["", "built-in concepts", "autoencoders"], rows)


def before(after: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """A row for each scorer that both models have: AUC before concepts were built in, and after."""
    rows = []
    for name in DETECTORS:
        if name in figures["areas"]:
            pair = np.asarray(figures["areas"][name]), np.asarray(after["areas"][name])
            rows.append([name, *(shown(estimate(one), 3) for one in pair), shown(estimate(pair[1] - pair[0]), 3)])
    return table(["scorer", "before concepts were built in", "after", "difference"], rows)


def mean_of_others(one: Mapping[str, Any]) -> float:
    """The mean AUC of other concepts' names."""
    return float(np.mean([value for value in one["others"] if value is not None]))


def detection(figures: Mapping[str, Any]) -> str:
    """A row for each scorer: the mean AUC over labels, and how many labels it detects with at least 0.9."""
    rows = []
    for name, values in figures["areas"].items():
        good = f"{sum(value >= 0.9 for value in values)} of {len(values)}"
        rows.append([name, shown(estimate(values), 3), good])
    return table(["scorer", "AUC", "at least 0.9"], rows)


def differences(figures: Mapping[str, Any]) -> str:
    """The known concept's AUC minus that of each other scorer, label by label."""
    own = np.asarray(figures["areas"]["known concept"])
    rows = []
    for name in DETECTORS[1:]:
        other = np.asarray(figures["areas"][name])
        rows.append([name, shown(estimate(own - other), 3), f"{int((own > other).sum())} of {len(own)}"])
    return table(["known concept minus", "difference of AUC", "labels with a larger AUC"], rows)


def cost_of(costs: Sequence[Mapping[str, Any]], place: str, kind: str, name: str) -> list[float]:
    return [one[place][kind][name] for one in costs]


def removal(figures: Mapping[str, Any]) -> str:
    """A row for each kind and control: costs with and without the label, and how much more removing the chosen one
    costs than the control, label by label."""
    costs, rows = figures["costs"], []
    for kind, text in KINDS.items():
        itself = np.array(cost_of(costs, "with", kind, "own"))
        for name, control in CONTROLS.items():
            inside, outside = (cost_of(costs, place, kind, name) for place in ("with", "without"))
            cells = [shown(estimate(inside), 3), shown(estimate(outside), 3)]
            if name == "own":
                active = [f"{np.mean(cost_of(costs, place, kind, 'active')):.0%}" for place in ("with", "without")]
                rows.append([f"{text}: {control}", *cells, "", *active])
            else:
                rows.append([f"… {control}", *cells, shown(estimate(itself - inside), 3), "", ""])
    head = ["removed", "with the label", "without", "itself minus this", "active with", "active without"]
    return table(head, rows)


def steering(arms: Sequence[Mapping[str, Any]]) -> str:
    """A row for each condition."""
    rows = []
    for arm in arms:
        name = arm["name"] if arm["strength"] is None else f"{arm['name']}, {arm['strength']:g}"
        rows.append([name, shown(over_texts(arm["found"])), shown(over_texts(arm["damage"])),
                     f"{arm['repeated']:.2f}", str(arm["texts"])])  # fmt: skip
    return table(["condition, strength", "found", "damage, nats a token", "repeated 3-grams", "texts"], rows)


def names(kinds: Mapping[str, Any]) -> str:
    """A row for each kind of concept."""
    rows = []
    for name, text in NAMES.items():
        if name not in kinds:
            continue
        one = kinds[name]
        cells = [f"{one['read']} of {one['of']}", str(len(one["areas"])), share(one), shown(estimate(one["areas"]))]
        rows.append([text, *cells, f"{mean_of_others(one):.2f}"])
    return table(["", "read", "active often enough", "AUC ≥ 0.8", "mean AUC", "of other names"], rows)


if __name__ == "__main__":
    write_page("one-roof", tables)

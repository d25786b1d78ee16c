"""The tables of docs/results/rollouts.md, written from docs/results/rollouts.json.

    python -m benchmarks.rollouts_report

A test compares the page with these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.results_page import table, write_page
from steerling_jax.evaluation.intervals import Estimate, bootstrap_mean

ARMS = {
    "start": "the model before training",
    "penalty": "a repetition penalty at sampling, no training",
    "plain": "the loop without a steered rollout",
    "steered": "the loop with one steered rollout",
    "random": "the loop with a random direction",
}
FIGURES = ("reward", "repetition", "length")


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by the name of their place; those of parts that were measured."""
    parts = {}
    if "strengths" in results:
        parts["strengths"] = strengths(results["strengths"])
    seeds = seeds_of(results)
    if seeds:
        parts |= {"arms": arms(results, seeds), "differences": differences(results, seeds)}
        parts["training"] = training(results, seeds)
    return parts


def seeds_of(results: Mapping[str, Any]) -> list[int]:
    """The seeds for which every arm was measured."""
    every = sorted({int(name.split()[1]) for name in results if name.split()[0] in ARMS})
    return [seed for seed in every if all(f"{arm} {seed}" in results for arm in ARMS)]


def values_of(results: Mapping[str, Any], arm: str, seed: int, figure: str) -> np.ndarray:
    """A figure of each text (n,), or of the model (1,)."""
    part = results[f"{arm} {seed}"]
    return np.asarray(part["values"][figure]) if figure in FIGURES else np.array([part[figure]])


def estimate(groups: Sequence[np.ndarray]) -> Estimate:
    """The mean over seeds of the mean over texts, with its interval over texts."""
    found = bootstrap_mean(groups, jax.random.key(0))
    assert found is not None
    return found


def shown(groups: Sequence[np.ndarray], digits: int, sign: str = "") -> str:
    """The mean with its interval, and in brackets the mean of each seed."""
    of_seeds = ", ".join(f"{group.mean():{sign}.{digits}f}" for group in groups)
    if len(groups[0]) == 1:  # one number for each seed: nothing to resample
        return f"{np.mean([group.mean() for group in groups]):{sign}.{digits}f} [{of_seeds}]"
    found = estimate(groups)
    interval = f"{found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f}"
    return f"{found.mean:{sign}.{digits}f} ({interval}) [{of_seeds}]"


def arms(results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """A row for each arm."""
    rows = []
    for arm, name in ARMS.items():
        columns = [(figure, 1 if figure == "length" else 3) for figure in (*FIGURES, "nats_per_token")]
        cells = [shown([values_of(results, arm, seed, f) for seed in seeds], digits) for f, digits in columns]
        rows.append([name, *cells])
    return table(["", "reward", "endless repetition", "tokens of a text", "held-out nats a token"], rows)


def differences(results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Differences of arms on the same prompts with the same seeds."""
    pairs = (("plain", "start"), ("steered", "plain"), ("steered", "random"), ("steered", "penalty"))
    rows = []
    for a, b in pairs:
        cells = []
        for figure in ("reward", "repetition", "nats_per_token"):
            both = [[values_of(results, arm, seed, figure) for seed in seeds] for arm in (a, b)]
            cells.append(shown([x - y for x, y in zip(*both, strict=True)], 3, "+"))
        rows.append([f"{ARMS[a]} − {ARMS[b]}", *cells])
    return table(["", "reward", "endless repetition", "held-out nats a token"], rows)


def training(results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Means over the steps and seeds of each trained arm."""
    names = ("informative", "clipped", "reward_steered", "repetition_steered")
    rows = []
    for arm in ("plain", "steered", "random"):
        steps = [step for seed in seeds for step in results[f"{arm} {seed}"]["steps"]]
        cells = [f"{np.mean([step[name] for step in steps]):.3f}" if name in steps[0] else "–" for name in names]
        entropy = [np.mean([results[f"{arm} {seed}"]["steps"][at]["entropy"] for seed in seeds]) for at in (0, -1)]
        processor = sum(results[f"{arm} {seed}"]["processor_seconds"] for seed in seeds)
        rows.append([ARMS[arm], *cells, f"{entropy[0]:.2f} → {entropy[1]:.2f}", f"{processor}"])
    head = ["", "groups with a gradient", "clipped tokens", "reward of the steered", "endless among the steered"]
    return table([*head, "entropy, first and last step", "processor seconds"], rows)


def strengths(part: Mapping[str, Any]) -> str:
    """A row for each strength and direction."""
    rows = [
        [
            row["direction"],
            f"{row['strength']:g}",
            *(f"{row[name]:.{3 if name != 'length' else 1}f}" for name in FIGURES),
        ]
        for row in part["rows"]
    ]
    return table(["direction", "strength", "reward", "endless repetition", "tokens of a text"], rows)


if __name__ == "__main__":
    write_page("rollouts", tables)

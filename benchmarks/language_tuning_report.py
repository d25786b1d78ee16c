"""Writes the tables of `language_tuning.py` into a page docs/results/feature-tuning.md with a place for each of them.

python -m benchmarks.language_tuning_report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.results_page import interval, table, write_page
from steerling_jax.evaluation.intervals import bootstrap


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by the name of their place."""
    languages = results["settings"]["languages"]
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    return {
        "switching": switching_table(arms, languages),
        "likelihood": likelihood_table(arms, languages),
        "features": features_table(results["settings"]),
    }


def rates(runs: Sequence[Mapping[str, Any]], languages: Sequence[str]) -> np.ndarray:
    """For each prompt of the languages the share of the runs whose text switched, (prompts,)."""
    return np.concatenate([np.mean([[bit == "1" for bit in run["switched"][name]] for run in runs], axis=0)
                           for name in languages])  # fmt: skip


def estimate(values: np.ndarray) -> dict[str, float]:
    """The mean with its 95 % interval over resampled prompts, in per cent."""
    found = bootstrap(lambda at: 100 * float(values[at].mean()), len(values), jax.random.key(0))
    return {"mean": found.mean, "low": found.low, "high": found.high}


def switching_table(arms: Mapping[str, Sequence[Mapping[str, Any]]], languages: Sequence[str]) -> str:
    """Per cent of texts that switched, and of letters in other scripts."""
    plain = rates(arms["plain"], languages) if "plain" in arms else None
    rows = []
    for name, runs in arms.items():
        own = rates(runs, languages)
        cells = [f"{100 * rates(runs, [language]).mean():.0f}" for language in languages]
        # The same prompts in both, so the difference is of pairs.
        change = "" if plain is None or name in ("before", "plain") else interval(estimate(own - plain), 1)
        other = 100 * float(np.mean([run["other"][language] for run in runs for language in languages]))
        rows.append([name, str(len(runs)), interval(estimate(own), 1), change, *cells, f"{other:.1f}"])
    head = ["tuning", "seeds", "texts that switch, %", "minus plain", *languages, "letters in other scripts, %"]
    return table(head, rows)


def likelihood_table(arms: Mapping[str, Sequence[Mapping[str, Any]]], languages: Sequence[str]) -> str:
    """Bits a byte of held-out answers, means over the seeds, and their spread over the seeds in brackets."""
    rows = []
    for name, runs in arms.items():
        values = np.array([[run["bits_per_byte"][language] for language in languages] for run in runs])
        means = values.mean(axis=1)
        cells = [f"{value:.3f}" for value in values.mean(axis=0)]
        rows.append([name, f"{means.mean():.3f} ({means.min():.3f}–{means.max():.3f})", *cells])
    return table(["tuning", "bits a byte", *languages], rows)


def features_table(settings: Mapping[str, Any]) -> str:
    """The features with their mean pre-activations."""
    rows = [[kind, language, str(layer), str(feature), f"{score:.3f}", *(f"{mean:.2f}" for mean in means)]
            for kind, language, layer, feature, score, *means in settings["features"]]  # fmt: skip
    return table(["kind", "language", "layer", "feature", "monolinguality", *settings["languages"]], rows)


if __name__ == "__main__":
    write_page("feature-tuning", tables)

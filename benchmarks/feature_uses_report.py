"""The tables of docs/results/feature-uses.md, written from docs/results/feature-uses.json.

    python -m benchmarks.feature_uses_report

A test compares the page with these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.results_page import interval, table, write_page

TABLES = ("code", "mathematics", "mmlu", "languages", "bad_words")
LANGUAGES = ("English", "German", "French", "Spanish", "Italian")
CASES = ("steering", "obligation", "problems", "mixing", "spanish")
METHODS = (
    ("best layer", 1), ("best layer", 2), ("best layer", 5), ("best layer", 10), ("all layers", 5),
    ("a tenth of the texts", 1), ("a tenth of the texts", 5), ("random features", 5), ("difference of means", None),
    ("logistic, hidden rows", None), ("logistic, features", None), ("logistic, words", None),
)  # fmt: skip


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by the name of their place."""
    parts = {}
    for model, one in results.items():
        for name, make, part in (
            ("benchmarks", benchmarks, "compare"),
            ("overlap", overlaps, "compare"),
            ("mixtures", mixtures, "mixtures"),
        ):
            if part in one:
                parts[f"{model} {name}"] = make(one[part])
        if "cover" in one:
            parts[f"{model} cover"] = cover(one["cover"])
            parts[f"{model} cover targets"] = cover_targets(one["cover"])
        if "tuning" in one:
            parts[f"{model} tuning"] = tuning(one["tuning"])
        for case in CASES:
            if case in one:
                parts[f"{model} {case}"] = steering(one[case])
                parts[f"{model} {case} doses"] = doses(one[case])
        if any("unexplained_variance" in figures for figures in one.values()):
            parts[f"{model} autoencoders"] = autoencoders(one)
        if "answers" in one:
            parts[f"{model} answers"] = answers(one["answers"])
            parts[f"{model} correlations"] = correlations(one["answers"])
        if "bad_words" in one:
            parts[f"{model} transfer"] = transfer(one["bad_words"])
        if present := {part: one[part] for part in TABLES if part in one}:
            parts[f"{model} classes"] = classes(present)
    return parts


def autoencoders(reports: Mapping[str, Any]) -> str:
    """A row for each autoencoder that parts of a model's figures were measured with."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for part, report in reports.items():
        for one in report["autoencoders"]:
            about = (str(one["layer"]), f"{one['latents']:,}", str(one["k"]), f"{report['unexplained_variance']:.3f}")
            parts.setdefault(about, []).append(part)
    rows = [[*about, ", ".join(names)] for about, names in parts.items()]
    return table(["layer", "latents", "k", "unexplained variance, held out", "used for"], rows)


def benchmarks(report: Mapping[str, Any]) -> str:
    """A row for each collection."""
    rows = []
    for one in report["benchmarks"]:
        counts = [str(one[field]) for field in ("adds_nothing", "cover")]
        shares = [f"{one['redundancy']:.4f}", f"{one['redundancy_share']:.3f}",
                  interval(one["redundancy_share_of_subsets"], 3)]  # fmt: skip
        rows.append([one["name"], str(one["samples"]), str(one["features"]), *shares, *counts])
    head = ["benchmark", "samples", "features", "redundancy", "share", "of 20 samples", "add nothing", "cover"]
    return table(head, rows)


def overlaps(report: Mapping[str, Any]) -> str:
    """The matched overlaps of features, and of n-grams in brackets."""
    names = [one["name"] for one in report["benchmarks"]]
    mean, words = report["matched"]["of_row"]["mean"], report["ngrams"]["of_row"]["mean"]
    rows = [[name, *(f"{a:.2f} ({b:.2f})" for a, b in zip(mean[i], words[i], strict=True))]
            for i, name in enumerate(names)]  # fmt: skip
    return table(["", *names], rows)


def mixtures(report: Mapping[str, Any]) -> str:
    """Overlaps of mixtures with GSM8K, in the order of their share of it, and of a collection of repeated samples."""
    names = [one["name"] for one in report["benchmarks"]]
    base = names.index("gsm8k")
    rows, shares, values = [], [], {"features": [], "ngrams": [], "embeddings": []}
    for i, name in enumerate(names):
        if not name.startswith("mixture_"):
            continue
        features, words = report["matched"]["of_row"], report["ngrams"]["of_row"]
        shares.append(int(name.removeprefix("mixture_")))
        values["features"].append(features["mean"][i][base])
        values["ngrams"].append(words["mean"][i][base])
        values["embeddings"].append(report["embeddings"][i][base])
        cells = [interval({kind: one[kind][i][base] for kind in ("mean", "low", "high")}) for one in (features, words)]
        rows.append([f"{shares[-1]} %", *cells, f"{values['embeddings'][-1]:.2f}"])
    rows.append(["GSM8K with itself", *(interval({kind: one[kind][base][base] for kind in ("mean", "low", "high")})
                                        for one in (report["matched"]["of_row"], report["ngrams"]["of_row"])),
                 f"{report['embeddings'][base][base]:.2f}"])  # fmt: skip
    rows.append(["rank correlation with the share", *(f"{correlation(shares, one):.2f}" for one in values.values())])
    head = ["share of GSM8K", "features in GSM8K's", "3-grams in GSM8K's", "cosine of hidden rows"]
    return table(head, rows)


def correlation(shares: Sequence[float], values: Sequence[float]) -> float:
    return float(np.corrcoef(rankdata(shares), rankdata(values))[0, 1])


def classes(reports: Mapping[str, Any]) -> str:
    """F1 and AUC of each method; means over the classes of a table, with the interval where it has one class."""
    head, columns = ["method"], []
    for name, report in reports.items():
        several = len(report["classes"]) > 2
        # Of two classes, the one that the table is named after is shown, or the only one.
        shown = report["classes"] if several else [one for one in report["classes"] if one["label"] in (name, "bad")]
        label = f"{len(shown)} classes" if several else shown[0]["label"]
        head += [f"{name}: {label}, F1", "AUC"]
        columns.append(shown)
    rows = []
    for method, count in METHODS:
        cells = [method if count is None else f"{method}, K = {count}"]
        for shown in columns:
            for figure in ("f1", "auc"):
                values = [scores_of(one, method, count)[figure] for one in shown]
                mean = float(np.mean([value["mean"] for value in values]))
                cells.append(interval(values[0]) if len(values) == 1 else f"{mean:.2f}")
        rows.append(cells)
    return table(head, rows)


def transfer(report: Mapping[str, Any]) -> str:
    """F1, and AUC in brackets, of features of the row's group in the column's."""
    groups, figures = report["groups"], report["classes"][0]["transfer"]
    rows = [[name, *(f"{f1:.2f} ({area:.2f})" for f1, area in zip(figures["f1"][i], figures["auc"][i], strict=True))]
            for i, name in enumerate(groups)]  # fmt: skip
    return table(["", *groups], rows)


def steering(report: Mapping[str, Any]) -> str:
    """A row for each condition on the second half of the prompts."""
    rows = [[arm["name"], interval(arm["found"]), f"{arm['damage']:.2f}", f"{arm['repeated']:.2f}",
             f"{arm['failures']} of {arm['texts']}"] for arm in report["arms"]]  # fmt: skip
    return table(["condition", "found", "damage, nats a token", "repeated 3-grams", "failures"], rows)


def doses(report: Mapping[str, Any]) -> str:
    """Found and damage by layer and strength on the first half of the prompts."""
    arms = [arm for arm in report["tuning"] if arm["layer"] is not None]
    strengths = sorted({arm["strength"] for arm in report["tuning"] if arm["strength"] is not None})
    rows = []
    for one in report["candidates"]:
        cells = {arm["strength"]: f"{arm['found']['mean']:.2f} ({arm['damage']:.2f})" for arm in arms
                 if arm["layer"] == one["layer"]}  # fmt: skip
        rows.append(
            [f"{one['layer']}: {one['feature']} (Δ {one['difference']:.2f})", *(cells.get(s, "") for s in strengths)]
        )
    if concept := report.get("concept"):
        cells = {arm["strength"]: f"{arm['found']['mean']:.2f} ({arm['damage']:.2f})" for arm in report["tuning"]
                 if arm["name"] == "built-in concept"}  # fmt: skip
        rows.append([f"concept {concept['name']}, in logits", *(cells.get(s, "") for s in strengths)])
    return table(["layer: feature", *(f"strength {s:g}" for s in strengths)], rows)


def cover(report: Mapping[str, Any]) -> str:
    """A row for each origin of texts, at the same number of them."""
    figures = report["synthesis"]
    missed, outcomes = len(figures["features"]), ("kept", "silent", "copied", "duplicate", "unusable")
    rows = []
    for arm, own in figures["arms"].items():
        difference = figures["differences"].get(arm)
        cells = [f"{own['covered']} of {missed}", "" if difference is None else interval(difference)]
        rows.append([arm, str(own["calls"]), *cells, *(str(own["outcomes"].get(one, 0)) for one in outcomes)])
    natural = figures["natural"]
    spread = f"{natural['covered']:.1f} ({natural['low']:.0f}–{natural['high']:.0f}) of {missed}"
    rows.append(["natural texts", str(figures["calls"]), spread, interval(figures["differences"]["natural texts"]),
                 *[""] * len(outcomes)])  # fmt: skip
    return table(["texts", "number", "missed targets that fire", "targets minus these", *outcomes], rows)


def cover_targets(report: Mapping[str, Any]) -> str:
    """A row for each missed target."""
    promoted = {one["feature"]: one["promoted"] for one in report["targets"]}
    rows = []
    for one in report["synthesis"]["features"]:
        words = " ".join(f"`{word.strip()}`" for word in promoted[one["feature"]][:4] if word.strip(" `|")).replace(
            "|", "\\|"
        )
        rows.append([str(one["feature"]), one["name"] or "", words, str(one["calls"]), str(one["kept"])])
    return table(["feature", "name", "promotes", "calls", "examples"], rows)


def tuning(report: Mapping[str, Any]) -> str:
    """A row for each set of texts that the model was tuned on."""
    rows = [[name, str(one["texts"]), interval(one["with_targets"], 3), interval(one["without_targets"], 3)]
            for name, one in report["arms"].items()]  # fmt: skip
    return table(["tuned on", "texts", "held-out texts with a target", "without one"], rows)


def answers(report: Mapping[str, Any]) -> str:
    """A row for each collection: its redundancy by features, by n-grams, and by the models' scores."""
    rows = [[one["name"], *(f"{one[field]:.3f}" for field in ("features", "ngrams", "answers"))]
            for one in report["benchmarks"]]  # fmt: skip
    return table(["benchmark", "features: share", "3-grams: share", "answers"], rows)


def correlations(report: Mapping[str, Any]) -> str:
    """Rank correlations over the collections."""
    names = {
        "features": "features' share and answers",
        "value": "features' redundancy and answers",
        "ngrams": "3-grams' share and answers",
        "features_without_ngrams": "features' share and answers, without 3-grams",
        "ngrams_without_features": "3-grams' share and answers, without features",
        "features_and_ngrams": "features' share and 3-grams' share",
    }
    rows = [[text, interval(report["correlations"][name])] for name, text in names.items()]
    own = [one for one in report["benchmarks"] if one["name"].title() not in LANGUAGES]
    rest = correlation(*([one[field] for one in own] for field in ("features", "answers")))
    rows.append([f"features' share and answers, without the languages ({len(own)} benchmarks)", f"{rest:.2f}"])
    return table(["quantities", "rank correlation (95 %)"], rows)


def scores_of(one: Mapping[str, Any], method: str, count: int | None) -> Mapping[str, Any]:
    return next(m for m in one["methods"] if m["name"] == method and m["count"] == count)


if __name__ == "__main__":
    write_page("feature-uses", tables)

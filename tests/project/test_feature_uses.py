"""The page of what features are good for shows the figures of its JSON, and the report computes them as it says."""

from __future__ import annotations

import json
import re

import numpy as np

from benchmarks import feature_uses_report as report
from benchmarks.results_page import with_tables
from tests.worlds.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"


def test_the_page_has_the_tables_of_its_figures():
    page = (RESULTS / "feature-uses.md").read_text(encoding="utf-8")
    parts = report.tables(json.loads((RESULTS / "feature-uses.json").read_text(encoding="utf-8")))
    assert len(parts) == 31
    assert with_tables(page, parts) == page
    numbers = re.findall(r"\d\.\d\d", parts["smollm2 mixtures"])
    assert len(numbers) > 20


def test_mixtures_are_ordered_by_their_share():
    names = ["gsm8k", "mixture_000", "mixture_050", "mixture_100"]
    column = [1.0, 0.2, 0.9, 0.5]

    def shares(values: list[float]) -> dict:
        table = np.tile(np.array(values)[:, None], 4).tolist()
        return {"of_row": {"mean": table, "low": table, "high": table}}

    figures = {
        "benchmarks": [{"name": name} for name in names],
        "matched": shares(column),
        "ngrams": shares([1.0, 0.0, 0.1, 0.2]),
        "embeddings": np.tile(np.array([1.0, 0.3, 0.2, 0.1])[:, None], 4).tolist(),
    }
    lines = report.mixtures(figures).splitlines()
    assert lines[3].startswith("| 50 % | 0.90 (0.90–0.90) | 0.10")
    assert "| 0.50 | 1.00 | -1.00 |" in lines[-1]  # 0.2, 0.9, 0.5 has one pair in the wrong order


def test_autoencoders_of_one_layer_are_distinguished():
    one = {"layer": 15, "latents": 9216, "k": 50}
    parts = {
        name: {"autoencoders": [one], "unexplained_variance": unexplained}
        for name, unexplained in (("code", 0.135), ("mmlu", 0.11), ("languages", 0.135))
    }
    assert report.autoencoders(parts).splitlines()[2:] == [
        "| 15 | 9,216 | 50 | 0.135 | code, languages |",
        "| 15 | 9,216 | 50 | 0.110 | mmlu |",
    ]


def test_covered_features_are_shown_by_origin_and_by_target():
    def arm(covered: int, **outcomes: int) -> dict:
        return {"calls": 3, "covered": covered, "outcomes": outcomes}

    difference = {"mean": 0.5, "low": 0.0, "high": 1.0}
    features = [
        {"feature": 7, "name": "files", "calls": 1, "kept": 1},
        {"feature": 9, "name": None, "calls": 2, "kept": 0},
    ]
    figures = {
        "targets": [{"feature": one["feature"], "promoted": [" open", "`", "close"]} for one in features],
        "synthesis": {
            "calls": 3,
            "features": features,
            "arms": {"targets": arm(1, kept=1, copied=2), "no feature": arm(0, silent=3)},
            "natural": {"covered": 0.75, "low": 0.0, "high": 2.0},
            "differences": {"no feature": difference, "natural texts": difference},
        },
    }
    rows = report.cover(figures).splitlines()
    assert rows[2] == "| targets | 3 | 1 of 2 |  | 1 | 0 | 2 | 0 | 0 |"
    assert rows[3] == "| no feature | 3 | 0 of 2 | 0.50 (0.00–1.00) | 0 | 3 | 0 | 0 | 0 |"
    assert rows[4].startswith("| natural texts | 3 | 0.8 (0–2) of 2 | 0.50 (0.00–1.00) |")
    rows = report.cover_targets(figures).splitlines()
    assert rows[2:] == ["| 7 | files | `open` `close` | 1 | 1 |", "| 9 |  | `open` `close` | 2 | 0 |"]

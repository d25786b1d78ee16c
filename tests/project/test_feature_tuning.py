"""The page of tuning against changes of language shows the figures of its JSON, as its columns say."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import language_tuning_report as report
from benchmarks.results_page import with_tables
from tests.worlds.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"


def run(arm: str, seed: int, switched: dict[str, str], bits: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "switched": switched, "other": {"en": 0.0, "ko": 0.5},
            "bits_per_byte": {"en": bits, "ko": bits + 1}}  # fmt: skip


def test_the_page_has_the_tables_of_its_figures():
    page = (RESULTS / "feature-tuning.md").read_text(encoding="utf-8")
    parts = report.tables(json.loads((RESULTS / "feature-tuning.json").read_text(encoding="utf-8")))
    assert "| before | 1 |" in parts["switching"]
    assert with_tables(page, parts) == page


def test_rates_and_likelihoods_of_arms():
    results = {
        "settings": {"languages": ["en", "ko"], "features": [["random", "ko", 2, 17, 0.25, 1.0, -2.0]]},
        "runs": [
            run("plain", 0, {"en": "0000", "ko": "1100"}, 1.0),
            run("plain", 1, {"en": "0000", "ko": "1110"}, 2.0),
            run("features 1", 0, {"en": "0000", "ko": "0000"}, 1.5),
        ],
    }
    parts = report.tables(results)
    plain, tuned = (row.split(" | ") for row in parts["switching"].splitlines()[2:])
    assert plain[1] == "2"
    assert plain[2].startswith("31.2 (")  # 2.5 of 8 prompts
    assert plain[3:6] == ["", "0", "62"]
    assert tuned[2:6] == ["0.0 (0.0–0.0)", tuned[3], "0", "0"]
    assert tuned[3].startswith("-31.2 (-")
    assert plain[6] == tuned[6] == "25.0 |"
    assert parts["likelihood"].splitlines()[2:] == [
        "| plain | 2.000 (1.500–2.500) | 1.500 | 2.500 |",
        "| features 1 | 2.000 (2.000–2.000) | 1.500 | 2.500 |",
    ]
    assert parts["features"].splitlines()[-1] == "| random | ko | 2 | 17 | 0.250 | 1.00 | -2.00 |"

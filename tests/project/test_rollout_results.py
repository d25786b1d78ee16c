"""The page of steered rollouts shows the figures of its JSON, and the report computes them as it says."""

from __future__ import annotations

import json

import pytest

from benchmarks import rollouts_report as report
from benchmarks.results_page import with_tables
from tests.worlds.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"


def test_the_page_has_the_tables_of_its_figures():
    page = (RESULTS / "rollouts.md").read_text(encoding="utf-8")
    parts = report.tables(json.loads((RESULTS / "rollouts.json").read_text(encoding="utf-8")))
    assert {"strengths", "arms"} <= set(parts)
    assert with_tables(page, parts) == page


def part(reward: float, nats: float) -> dict:
    """Two texts, of this reward and of one above it."""
    values = {"reward": [reward, reward + 1], "repetition": [0.0, 1.0], "length": [8.0, 8.0]}
    steps = [{"informative": 0.5, "clipped": 0.1, "entropy": 2.0}, {"informative": 1.0, "clipped": 0.3, "entropy": 1.0}]
    return {"values": values, "nats_per_token": nats, "steps": steps, "processor_seconds": 3}


def test_arms_are_compared_on_the_same_texts():
    results = {f"{arm} {seed}": part(0.25 * i + seed, 2.0 + i) for i, arm in enumerate(report.ARMS) for seed in (0, 1)}
    results |= {"start 2": part(9.0, 9.0)}  # a seed without the other arms is left out
    parts = report.tables(results)
    assert parts["arms"].splitlines()[2].startswith("| the model before training | 1.000 (")
    assert "[0.500, 1.500] |" in parts["arms"].splitlines()[2]
    # Every text's difference is the same, so the interval has no width.
    assert "| +0.250 (+0.250 to +0.250) [+0.250, +0.250] |" in parts["differences"].splitlines()[3]
    assert parts["training"].splitlines()[2].split(" | ")[1:3] == ["0.750", "0.200"]


def test_a_page_without_a_place_is_noticed():
    with pytest.raises(AssertionError, match="no place for arms"):
        with_tables("no marks", {"arms": "x"})

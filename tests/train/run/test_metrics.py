"""metrics.jsonl and the clock of a run that is continued."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from steerling_jax.train.run import clock
from steerling_jax.train.run.metrics import MetricsLog


def test_metrics_resume_at_the_restored_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 8):
            log.write("step", step, {"loss": step / 2})
        log.write("evaluation", 7, {"bound": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    with MetricsLog(tmp_path, 5) as log:
        log.write("step", 6, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1] == {"kind": "step", "step": 6, "loss": 9.0}


def test_the_clock_adds_up_over_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 7.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    first = clock.Clock()
    with first.phase("step"):
        now += 0.25
    now += 2.0  # in no phase
    first.add({"starts": 2, "seconds": {"step": 10.0, "save": 1.5}})
    saved = first.to_json()
    assert saved["starts"] == 3
    assert {name: spent for name, spent in saved["seconds"].items() if spent} == {
        "step": 10.25,
        "save": 1.5,
        "other": 2,
    }
    again = clock.Clock()
    now += 1.0
    again.add(saved)
    assert sum(again.to_json()["seconds"].values()) == 14.75


def test_metrics_of_a_run_that_lost_nothing_stay_the_same_file(tmp_path: Path) -> None:
    """A program that follows the file goes on reading it."""
    files = set()
    for step in (1, 2, 3):
        with MetricsLog(tmp_path, step - 1) as log:
            log.write("step", step, {"loss": 1.0})
        files.add((tmp_path / "metrics.jsonl").stat().st_ino)
    assert len(files) == 1

"""Hidden rows that were not recorded are computed again, and a progress function can cancel that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.explain.hidden_rows import hidden_rows
from tests.worlds.paths import REPOSITORY


def test_rows_are_computed_again_with_progress_and_can_be_cancelled():
    bundle = sj.load(REPOSITORY / "tests" / "golden" / "base")
    trace = sj.generate(bundle, [1, 2, 3], sj.GenerationConfig(max_new_tokens=20, steps=20, seed=3)).trace
    assert trace.hidden is not None
    bare = dataclasses.replace(trace, hidden=None)
    reports: list[tuple[str, int, int]] = []
    rows = hidden_rows(bundle, bare, progress=lambda *report: reports.append(report))
    np.testing.assert_allclose(rows, trace.hidden, rtol=0, atol=1e-3)
    total = len(trace.commits)
    assert reports == [("hidden rows", done, total) for done in range(0, total, 8)]
    assert len(reports) > 1

    def cancel(stage: str, done: int, total: int) -> None:
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        hidden_rows(bundle, bare, progress=cancel)
    hidden_rows(bundle, trace, progress=cancel)  # the recorded ones take no passes

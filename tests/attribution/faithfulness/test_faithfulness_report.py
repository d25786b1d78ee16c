"""A part of the faithfulness report that was stopped goes on where it was, with the same settings only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerling_jax.attribution.faithfulness.kept import PartialResults
from steerling_jax.attribution.faithfulness.report import Results, write_report
from steerling_jax.errors import UserError


class Measure:
    """Three results; stops before the third while `stop`."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.stop = True

    def __call__(self, kept: PartialResults) -> dict[str, Any]:
        found = []
        for number in range(3):
            if self.stop and number == 2:
                raise KeyboardInterrupt
            found.append(kept.get(f"result-{number}", lambda number=number: self.make(number)))
        return {"figures": [], "notes": [], "settings": {}, "found": found}

    def make(self, number: int) -> dict[str, Any]:
        self.made.append(number)
        return {"values": np.arange(number), "nothing": float("nan")}


def test_a_stopped_part_goes_on(tmp_path: Path) -> None:
    measure = Measure()
    with pytest.raises(KeyboardInterrupt):
        Results(tmp_path, "command", "model").part("inputs", {"seed": 0}, measure)
    measure.stop = False
    results = Results(tmp_path, "command", "model")
    results.part("inputs", {"seed": 0}, measure)
    assert measure.made == [0, 1, 2]  # none twice
    assert results.found["inputs"]["found"] == [{"values": list(range(n)), "nothing": None} for n in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.json"]


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    measure = Measure()
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            Results(tmp_path, "command", "model").part("inputs", {"seed": seed}, measure)
    assert measure.made == [0, 1, 0, 1]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    PartialResults.open(tmp_path / "kept", {}).get("one", lambda: 1)
    (tmp_path / "kept" / "one.json").write_text("{")
    with pytest.raises(UserError, match=r"one\.json cannot be read"):
        PartialResults.open(tmp_path / "kept", {}).get("one", lambda: 1)


def test_the_page_keeps_parts_measured_before(tmp_path: Path) -> None:
    """Of the same model and corpus only, in the page's order."""

    def measured(part: str, model: str = "model", corpus: str = "a") -> str:
        measure = Measure()
        measure.stop = False
        results = Results(tmp_path, f"measure {part}", model)
        results.part(part, {"fingerprint": "f", "corpus": corpus, "seed": part}, measure)
        write_report(results)
        return (tmp_path / "report.md").read_text()

    measured("outputs")
    page = measured("inputs")
    assert "measure inputs" in page
    assert page.index("## Inputs") < page.index("## Bad outputs")
    assert "Inputs" not in measured("concepts", corpus="b")
    assert "Bad outputs" not in measured("concepts", model="other")

"""An interrupted part of the faithfulness report continues with its partial results, with the same settings only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerling_jax.attribution.faithfulness.partial_results import PartialResults
from steerling_jax.attribution.faithfulness.report import Results, write_report
from steerling_jax.errors import UserError


class Measure:
    """A measurement of three results; interrupted before the third while `stop` is set."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.stop = True

    def __call__(self, partial: PartialResults) -> dict[str, Any]:
        found = []
        for number in range(3):
            if self.stop and number == 2:
                raise KeyboardInterrupt
            found.append(partial.get_or_compute(f"result-{number}", lambda number=number: self.make(number)))
        return {"figures": [], "notes": [], "settings": {}, "found": found}

    def make(self, number: int) -> dict[str, Any]:
        self.made.append(number)
        return {"values": np.arange(number), "nothing": float("nan")}


def test_an_interrupted_part_continues(tmp_path: Path) -> None:
    measure = Measure()
    with pytest.raises(KeyboardInterrupt):
        Results(tmp_path, "command", "model").measure_part("inputs", {"seed": 0}, measure)
    measure.stop = False
    results = Results(tmp_path, "command", "model")
    results.measure_part("inputs", {"seed": 0}, measure)
    assert measure.made == [0, 1, 2]  # each result is computed once
    assert results.parts["inputs"]["found"] == [{"values": list(range(n)), "nothing": None} for n in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.json"]


def test_other_settings_discard_partial_results(tmp_path: Path) -> None:
    measure = Measure()
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            Results(tmp_path, "command", "model").measure_part("inputs", {"seed": seed}, measure)
    assert measure.made == [0, 1, 0, 1]


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_damaged_result_is_reported(tmp_path: Path, content: str) -> None:
    PartialResults.open(tmp_path / "partial", {}).get_or_compute("one", lambda: 1)
    (tmp_path / "partial" / "one.json").write_text(content)
    with pytest.raises(UserError, match=r"one\.json cannot be read"):
        PartialResults.open(tmp_path / "partial", {}).get_or_compute("one", lambda: 1)


def test_the_page_includes_earlier_parts(tmp_path: Path) -> None:
    """Of the same model and corpus only, in the page's order."""

    def measured(part: str, model: str = "model", corpus: str = "a") -> str:
        measure = Measure()
        measure.stop = False
        results = Results(tmp_path, f"measure {part}", model)
        results.measure_part(part, {"fingerprint": "f", "corpus": corpus, "seed": part}, measure)
        write_report(results)
        return (tmp_path / "report.md").read_text()

    measured("outputs")
    page = measured("inputs")
    assert "measure inputs" in page
    assert page.index("## Inputs") < page.index("## Bad outputs")
    assert "Inputs" not in measured("concepts", corpus="b")
    assert "Bad outputs" not in measured("concepts", model="other")

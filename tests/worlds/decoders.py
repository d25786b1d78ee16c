"""The golden cases of decoder families: `tests/golden_decoders`, described in its README."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.worlds.paths import REPOSITORY

GOLDEN_DECODERS = REPOSITORY / "tests" / "golden_decoders"
DECODERS = sorted(folder.name for folder in GOLDEN_DECODERS.iterdir() if folder.is_dir())


@dataclass(frozen=True)
class GoldenDecoder:
    """One case: its folder, the arrays of `golden.npz`, and the fields of `golden.json`."""

    folder: Path
    arrays: dict[str, np.ndarray]
    alpha: float
    steered_layer: int

    @property
    def tolerance(self) -> float:
        """Relative to the largest value, as the README has it."""
        return 5e-4 if self.folder.name.startswith("qwen3_5") else 1e-5


def golden_decoder(name: str) -> GoldenDecoder:
    """The golden case of that name."""
    folder = GOLDEN_DECODERS / name
    with np.load(folder / "golden.npz") as stored:
        return GoldenDecoder(folder, dict(stored), **json.loads((folder / "golden.json").read_text()))


def assert_within(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Asserts a difference of at most `tolerance` times the largest expected value (at least 1)."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))

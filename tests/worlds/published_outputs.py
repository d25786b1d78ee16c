"""Compares `sj.forward` with the published package's outputs: golden cases, and random models in tests/parity."""

from __future__ import annotations

from typing import Any

import numpy as np


def check(name: str, ours: Any, reference: np.ndarray, note: str = "") -> None:
    """Asserts equality within the golden tolerance, 2e-5 + 2e-6 · max|reference|.

    Top-k results are compared as sets, because equal logits have no defined order.
    """
    ours = np.asarray(ours)
    if "topk" in name:
        ours, reference = np.sort(ours), np.sort(reference)
    tolerance = 0 if name.endswith("indices") else 2e-5 + 2e-6 * np.abs(reference).max()
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance, err_msg=f"{name} {note}")

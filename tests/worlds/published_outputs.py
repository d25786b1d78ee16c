"""Comparing `sj.forward` with what the published package returned: golden cases, and random models in tests/parity."""

from __future__ import annotations

from typing import Any

import numpy as np


def check(name: str, ours: Any, reference: np.ndarray, note: str = "") -> None:
    """Within the golden tolerance, 2e-5 + 2e-6 · max|reference|; what is kept as sets, for equal logits have no
    order."""
    ours = np.asarray(ours)
    if "topk" in name:
        ours, reference = np.sort(ours), np.sort(reference)
    tolerance = 0 if name.endswith("indices") else 2e-5 + 2e-6 * np.abs(reference).max()
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance, err_msg=f"{name} {note}")

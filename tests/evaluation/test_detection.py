"""Areas under the ROC curve of many scores for many labels at once."""

from __future__ import annotations

import numpy as np
import pytest

from steerling_jax.evaluation.detection import auc, auc_table


def test_a_table_has_the_area_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (40, 3)).astype(float)  # with many ties
    positive = rng.random((40, 4)) < 0.3
    positive[:, 2], positive[:, 3] = False, True
    table = auc_table(scores, positive)
    assert table.shape == (4, 3)
    for label in (0, 1):
        for column in range(3):
            assert table[label, column] == pytest.approx(auc(scores[:, column], positive[:, label]))
    assert (table[2:] == 0.5).all()  # no pair to compare

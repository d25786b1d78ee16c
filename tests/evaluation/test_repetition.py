"""Whether a text ends in a cycle, on texts whose cycle is known."""

from __future__ import annotations

import numpy as np
import pytest

from steerling_jax.evaluation.repetition import cycle_at_end


@pytest.mark.parametrize(
    ("ids", "cycle"),
    [
        ([1, 2, 3, *[7] * 12], (1, 12)),
        ([1, 2, 3, *[7] * 11], None),  # too short to be endless
        ([9, *[1, 2, 3] * 4], (3, 12)),
        ([9, *[1, 2, 3] * 4, 1], (3, 13)),  # cut off within the cycle
        ([*range(8), *range(8), 0], None),  # twice and a little
        ([*range(8), *range(8), *range(8)], (8, 24)),
        ([*[7] * 30, 1, 2, 3], None),  # it came out of it
        (list(range(40)), None),
        ([], None),
        ([5], None),
    ],
)
def test_cycles(ids: list[int], cycle: tuple[int, int] | None):
    assert cycle_at_end(ids) == cycle
    assert cycle_at_end(np.array(ids, np.int32)) == cycle

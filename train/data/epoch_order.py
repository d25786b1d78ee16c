"""The order in which a run goes through numbered items, computed from their places alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(seed: Sequence[int], first: int, count: int, size: int) -> np.ndarray:
    """The numbers, from 0 to `size` − 1, of the items at `count` places from `first` on, (count,) int64.

    Each epoch of `size` places has an order of its own. seed: of the run and of this stream of random numbers.
    """
    epochs, places = np.divmod(np.arange(first, first + count), size)
    order = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        permutation = np.random.default_rng([*seed, epoch]).permutation(size)
        order[epochs == epoch] = permutation[places[epochs == epoch]]
    return order

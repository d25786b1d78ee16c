"""The computed permutation: a bijection for any size, different for each seed, and well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.train.prepare.permutation import Permutation


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 2**64 - 1))
def test_every_item_once(size: int, seed: int):
    assert sorted(Permutation(size, seed).order().tolist()) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 2**62 - 1), st.integers(0, 2**64 - 1), st.data())
def test_large_orders_need_no_list(size: int, seed: int, data: st.DataObject):
    """Different positions have different items, all in range, and each is computed without the others."""
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    items = Permutation(size, seed)(np.array(positions))
    assert len(set(items.tolist())) == len(positions)
    assert 0 <= items.min() <= items.max() < size
    assert Permutation(size, seed)(np.array(positions[-1:])).tolist() == items[-1:].tolist()


def test_orders_of_different_seeds_agree_by_chance_only():
    first, second = (Permutation(10_000, seed).order() for seed in (0, 1))
    assert (first == second).sum() < 10  # 1 is expected
    assert abs(np.corrcoef(np.arange(10_000), first)[0, 1]) < 0.04  # four standard deviations


def test_neighbours_are_separated():
    """Items at neighbouring positions are as far apart as random ones, and uniform over the whole range."""
    order = Permutation(1 << 16, 3).order()
    gaps = np.abs(np.diff(order)) / (1 << 16)
    assert abs(gaps.mean() - 1 / 3) < 0.01
    counts = np.histogram(order[: 1 << 12], bins=16)[0]
    assert abs(counts - 256).max() < 5 * 16


def test_the_order_never_changes():
    """A store's order follows from its seed, so the permutation of a seed must stay the same in all versions."""
    assert Permutation(10, 0).order().tolist() == [5, 2, 6, 0, 3, 7, 4, 8, 1, 9]


def test_bad_sizes_and_positions():
    with pytest.raises(ValueError, match="size is -1"):
        Permutation(-1, 0)
    with pytest.raises(ValueError, match="permutation is of 5"):
        Permutation(5, 0)(np.array([5]))

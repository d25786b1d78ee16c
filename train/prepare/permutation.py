"""A shuffled order that is computed, not stored: a keyed bijection of 0 … n − 1 by a Feistel network.

Any item's place is known without a list of the others, so that many workers agree on one order of billions of items.
The network permutes the numbers of 2k bits, the fewest that hold n; what falls outside of n is sent through again
until it is inside (cycle walking), which keeps it a bijection. Source: Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002. It mixes well; it is no cipher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment


@dataclass(frozen=True)
class Permutation:
    """The order of `size` items that `seed` gives. Both are whole numbers of at most 62 and 64 bits."""

    size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.size < 1 << 62:
            raise ValueError(f"size is {self.size}, but it must be from 0 to below 2^62")

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Which item stands at each place: index (m,) of 0 … size − 1, any whole dtype, to (m,) int64."""
        value = np.asarray(index, np.uint64)
        if value.size and int(value.max()) >= self.size:
            raise ValueError(f"an index is {int(value.max())}, but the permutation is of {self.size} items")
        value = self._network(value)
        while (outside := value >= self.size).any():
            value[outside] = self._network(value[outside])
        return value.astype(np.int64)

    def order(self) -> np.ndarray:
        """All items in their order, (size,) int64."""
        return self(np.arange(self.size))

    def _network(self, value: np.ndarray) -> np.ndarray:
        half = max((max(self.size - 1, 1).bit_length() + 1) // 2, 1)
        shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
        left, right = value >> shift, value & mask
        for number in range(_ROUNDS):
            key = np.uint64((self.seed + (number + 1) * _GOLDEN) % (1 << 64))
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << shift) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, on uint64 with wrap-around. The last step brings high bits down to where they count."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

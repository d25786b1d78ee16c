"""A pseudo-random order that is computed instead of stored: a keyed bijection of 0 … n − 1 by a Feistel network.

The item at each position is computed without a list of the others, so that many workers agree on one order of billions
of items. Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002. It mixes well, but it is not a
secure cipher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment


@dataclass(frozen=True)
class Permutation:
    """A permutation of `size` items, determined by `seed`: integers of at most 62 and 64 bits.

    Raises `ValueError` for a size out of range.
    """

    size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.size < 1 << 62:
            raise ValueError(f"size is {self.size}, but it must be from 0 to below 2^62")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The item at each position: (m,) integers of 0 … size − 1 of any dtype, to (m,) int64.

        Raises `ValueError` for a position out of range.
        """
        value = np.asarray(positions, np.uint64)
        if value.size and int(value.max()) >= self.size:
            raise ValueError(f"an index is {int(value.max())}, but the permutation is of {self.size} items")
        # Cycle walking: the network permutes 0 … 2^(2k) − 1, which contains 0 … size − 1. A value outside is sent
        # through again. Its cycle of the large permutation leads back inside, at the latest to the position itself, and
        # two positions never reach the same item; so the result is a bijection of 0 … size − 1. The large domain has at
        # most four times as many numbers, so a position takes at most four passes on average.
        value = self._network(value)
        while (outside := value >= self.size).any():
            value[outside] = self._network(value[outside])
        return value.astype(np.int64)

    def order(self) -> np.ndarray:
        """The items at all positions, (size,) int64."""
        return self(np.arange(self.size))

    def _network(self, value: np.ndarray) -> np.ndarray:
        """A bijection of the numbers of 2k bits, where 2k is the smallest even number of bits that holds `size`."""
        half = max((max(self.size - 1, 1).bit_length() + 1) // 2, 1)
        shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
        left, right = value >> shift, value & mask
        # A Feistel round, (L, R) to (R, L xor f(R)), is invertible for any f: R is in the output, so f(R) can be
        # computed again and removed. Hence f may lose information, as the mask does here.
        for number in range(_ROUNDS):
            key = np.uint64((self.seed + (number + 1) * _GOLDEN) % (1 << 64))
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << shift) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, on uint64 with wrap-around.

    The last step moves high bits down to the low bits that the mask keeps.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

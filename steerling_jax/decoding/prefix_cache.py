"""Keys and values of attention blocks that several requests begin with, kept for the next one.

A finished block's keys and values depend on its tokens and on all before them, and on nothing else as long as none of
them is masked or steered. So they are found by a hash of the tokens up to the block's end.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import jax
import numpy as np

from steerling_jax.models.steerling.backbone import KeyValueCache


def prefix_keys(tokens: np.ndarray, block: int) -> Iterator[bytes]:
    """One key for each whole block of tokens (T,), of all tokens up to its end."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(tokens) - block + 1, block):
        digest.update(np.ascontiguousarray(tokens[start : start + block], np.int32).tobytes())
        yield digest.digest()


class PrefixCache:
    """Blocks' keys and values, each (G, W, d) a layer, up to `limit` bytes; the longest unused go first.

    hits, misses: blocks found, and looked for in vain.
    """

    def __init__(self, limit: int):
        self.limit, self.size, self.hits, self.misses = limit, 0, 0, 0
        self._blocks: OrderedDict[bytes, KeyValueCache] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def get(self, key: bytes) -> KeyValueCache | None:
        found = self._blocks.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end(key)
        return found

    def put(self, key: bytes, block: KeyValueCache) -> None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(block))
        if key in self._blocks or size > self.limit:
            return
        self._blocks[key] = block
        self.size += size
        while self.size > self.limit:
            _, dropped = self._blocks.popitem(last=False)
            self.size -= sum(leaf.nbytes for leaf in jax.tree.leaves(dropped))

"""Keys and values of attention blocks at the start of prompts, shared between requests.

The keys and values of a final block depend on its own tokens and on all tokens before it (attention is block-causal),
on layer edits at these positions, and on nothing else while none of these is masked or steered. So a block's key is a
hash of all tokens up to its end and of the edits: equal blocks after different beginnings have different keys.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import jax
import numpy as np

from steerling_jax.models.steerling.backbone import KeyValueCache


def prefix_keys(tokens: np.ndarray, block: int, edits: bytes = b"") -> Iterator[bytes]:
    """One key for each whole block of tokens (T,): the hash of all tokens up to its end, not of the block alone.

    edits: the digest of the layer edits of these positions.
    """
    digest = hashlib.blake2b(digest_size=16, key=edits)
    for start in range(0, len(tokens) - block + 1, block):
        digest.update(np.ascontiguousarray(tokens[start : start + block], np.int32).tobytes())
        yield digest.digest()


class PrefixCache:
    """Keys and values of blocks, each (G, W, d) a layer, up to `limit` bytes; the least recently used are dropped
    first.

    hits, misses: how many look-ups found their block, and how many did not.
    """

    def __init__(self, limit: int):
        self.limit, self.size, self.hits, self.misses = limit, 0, 0, 0
        self._blocks: OrderedDict[bytes, KeyValueCache] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def get(self, key: bytes) -> KeyValueCache | None:
        """The block with this key, now the most recently used one; None if it is not stored."""
        found = self._blocks.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end(key)
        return found

    def put(self, key: bytes, block: KeyValueCache) -> None:
        """Stores a block, and drops others as the limit requires; one larger than the limit is not stored."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(block))
        if key in self._blocks or size > self.limit:
            return
        self._blocks[key] = block
        self.size += size
        while self.size > self.limit:
            _, dropped = self._blocks.popitem(last=False)
            self.size -= sum(leaf.nbytes for leaf in jax.tree.leaves(dropped))

"""Assigns documents to the training or held-out split, so that no near-duplicate of a held-out one is trained on.

A document's split follows from a key alone, independently of the order of input, the machine and the Python version.
The key is the hash of its text or the name of its cluster; documents that share much of their wording use the smallest
of their keys and therefore stay together.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.corpus.documents import Document

_WORDS = re.compile(r"\w+|[^\w\s]")
_SHINGLE_WORDS = 8
_SHARED = 0.5  # share of the smaller document's shingles that makes two documents near-duplicates
_COMMON = 40  # the most documents of one shingle that are compared all with all; beyond, each with the next


def split_of_key(key: str, heldout_share: float) -> str:
    """`train` or `heldout`, for the key of a document or cluster; about `heldout_share` of all keys are held out."""
    return "heldout" if _uniform(key, "split") < heldout_share else "train"


def in_sample(document: Document, share: float) -> bool:
    """Whether a document is in the sample of the given share, by the hash of its text; larger samples contain smaller
    ones."""
    return _uniform(document.sha256, "keep") < share


def _uniform(key: str, purpose: str) -> float:
    """A number in [0, 1) from a hash; `purpose` makes sampling and splitting independent of each other."""
    digest = hashlib.sha256(f"{purpose} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def near_duplicates(texts: Sequence[str], names: Sequence[str] = ()) -> list[int]:
    """Cluster of each text, as the number of the cluster's first text.

    Two texts are near-duplicates if at least half of the smaller one's eight-word shingles occur in the other; clusters
    are the connected components. For a shingle that more than 40 texts contain, only each of them and the next are
    counted as sharing it. Many versions of one text are still connected, each to the next; two texts that share half
    of their shingles only by such common ones, with others of these texts between them, may stay apart.

    names: the cluster name of each text; texts of equal, non-empty names are in one cluster whatever their wording.
    """
    shingles = [_shingles(text) for text in texts]
    sizes = np.array([len(s) for s in shingles], np.int64)
    owners = np.repeat(np.arange(len(texts)), sizes)
    # A pair of texts occurs once for each shingle that both contain, so a pair's count is the size of the intersection.
    # Pairs without a common shingle never occur: this is what makes comparing all texts with all feasible.
    pairs, shared = np.unique(
        _pairs(np.concatenate(shingles or [np.zeros(0, np.uint64)]), owners), axis=0, return_counts=True
    )
    smaller = np.minimum(sizes[pairs[:, 0]], sizes[pairs[:, 1]])
    return _components(len(texts), np.concatenate([pairs[shared >= _SHARED * smaller], _same_name_pairs(names)]))


def _shingles(text: str) -> np.ndarray:
    """Hashes of the distinct runs of eight words, uint64; a shorter text is one shingle."""
    words = np.array([zlib.crc32(word.encode("utf-8", errors="replace")) for word in _WORDS.findall(text)], np.uint64)
    count = max(len(words) - _SHINGLE_WORDS + 1, 1)
    hashes = np.zeros(count, np.uint64)
    # A polynomial hash, for all runs at once: one step per word of a run, on shifted views of the words.
    for offset in range(min(_SHINGLE_WORDS, len(words))):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count]
    return np.unique(hashes)


def _pairs(hashes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(n, 2) pairs of texts, the smaller number first, one for each shingle that both contain.

    hashes, owners: the shingles of all texts and the text of each, ordered by text.
    """
    # After the stable sort, equal hashes form a group whose owners ascend.
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(hashes)])
    pairs = [np.zeros((0, 2), np.int64)]
    # All groups of one size are one array (groups, size): a loop over 40 sizes in place of millions of groups.
    for size in range(2, _COMMON + 1):
        group = owners[starts[sizes == size][:, None] + np.arange(size)]
        first, second = np.triu_indices(size, 1)
        pairs.append(np.stack([group[:, first].ravel(), group[:, second].ravel()], 1))
    # The pairs of a group grow with the square of its size, and boilerplate such as a license is in very many texts:
    # large groups give only neighbouring pairs.
    neighbours = np.flatnonzero((hashes[1:] == hashes[:-1]) & np.repeat(sizes > _COMMON, sizes)[1:])
    pairs.append(np.stack([owners[neighbours], owners[neighbours + 1]], 1))
    return np.concatenate(pairs)


def _same_name_pairs(names: Sequence[str]) -> np.ndarray:
    """(n, 2) pairs of each named text with the first of its name."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, number), number) for number, name in enumerate(names) if name]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _components(count: int, pairs: np.ndarray) -> list[int]:
    """The smallest member of each item's connected component, by union-find with path halving."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs.tolist():
        a, b = sorted((root(a), root(b)))
        parent[b] = a  # the smaller root stays, so that a root is its component's first text
    return [root(i) for i in range(count)]

"""Training and held-out documents, so that no near-copy of a held-out one is trained on.

A document falls on a side by a mark alone: not by the order, the machine or the Python. The mark is the hash of its
text or the name of its cluster, or, for documents that share much of their wording, the smallest mark among them, so
that they stay together.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np

from steerling_jax.train.corpus.documents import Document

_WORDS = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 8  # words in a row
_SHARED = 0.5  # share of the smaller document's shingles that makes two documents one cluster
_COMMON = 40  # documents that have a shingle are compared all with all up to so many, beyond each with the next


def side(mark: str, heldout_share: float = 0.04) -> str:
    """`train` or `heldout`, for a document or a cluster of that mark; about `heldout_share` of them are held out."""
    return "heldout" if _fraction(mark, "split") < heldout_share else "train"


def keep(document: Document, share: float) -> bool:
    """Whether the document is in a sample of that share: by its text, so the same ones everywhere."""
    return _fraction(document.sha256, "keep") < share


def _fraction(sha256: str, purpose: str) -> float:
    digest = hashlib.sha256(f"{purpose} {sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def near_duplicates(texts: Sequence[str], names: Sequence[str] = ()) -> list[int]:
    """Cluster of each text, as the number of the cluster's first text.

    Two texts are joined when at least half of the smaller one's eight-word shingles are in the other; joins add up. A
    shingle of more than 40 texts counts only between each of them and the next one that has it: many versions of one
    text are joined, one after the other; two that share half by such shingles alone, with others of them in between,
    may not be. names: of each text, empty or equal for texts that are joined whatever they say.
    """
    shingles = [_shingles(text) for text in texts]
    sizes = np.array([len(s) for s in shingles], np.int64)
    owners = np.repeat(np.arange(len(texts)), sizes)
    pairs, shared = np.unique(
        _pairs(np.concatenate(shingles or [np.zeros(0, np.uint64)]), owners), axis=0, return_counts=True
    )
    smaller = np.minimum(sizes[pairs[:, 0]], sizes[pairs[:, 1]])
    return _union(len(texts), np.concatenate([pairs[shared >= _SHARED * smaller], _namesakes(names)]))


def _shingles(text: str) -> np.ndarray:
    """Hashes of the distinct runs of eight words; a shorter text is one shingle."""
    words = np.array([zlib.crc32(word.encode("utf-8", errors="replace")) for word in _WORDS.findall(text)], np.uint64)
    count = max(len(words) - _SHINGLE + 1, 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(min(_SHINGLE, len(words))):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count]
    return np.unique(hashes)


def _pairs(hashes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(n, 2) pairs of documents, one for each shingle that both have."""
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(hashes)])
    found = [np.zeros((0, 2), np.int64)]
    for size in range(2, _COMMON + 1):
        group = owners[starts[sizes == size][:, None] + np.arange(size)]
        first, second = np.triu_indices(size, 1)
        found.append(np.stack([group[:, first].ravel(), group[:, second].ravel()], 1))
    many = np.flatnonzero((hashes[1:] == hashes[:-1]) & np.repeat(sizes > _COMMON, sizes)[1:])
    found.append(np.stack([owners[many], owners[many + 1]], 1))
    return np.concatenate(found)


def _namesakes(names: Sequence[str]) -> np.ndarray:
    """(n, 2) pairs: each named one with the first of its name."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, number), number) for number, name in enumerate(names) if name]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _union(count: int, pairs: np.ndarray) -> list[int]:
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs.tolist():
        a, b = sorted((root(a), root(b)))
        parent[b] = a
    return [root(i) for i in range(count)]

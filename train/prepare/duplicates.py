"""Stage "comparing": finds documents whose text occurred before, so that each text is in the corpus once.

The hashes of all documents do not fit in memory for a large corpus, so each task compares one range of hash values: it
reads the hashes of all parts and keeps those in its range. Equal texts have equal hashes and thus the same range.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.split import in_sample
from steerling_jax.train.prepare.preparation import Preparation
from steerling_jax.train.prepare.survey import HASH_BYTES

_FILES_AT_ONCE = 64
_RANGE_DOCUMENTS = 1 << 24  # approximate number of hashes that one task compares


def range_tasks(preparation: Preparation) -> list[tuple[int, int]]:
    """(range, number of ranges) of each range of hashes that is not compared yet."""
    ranges = _range_count(preparation)
    existing = preparation.work.names("duplicates")
    return [(number, ranges) for number in range(ranges) if f"duplicates/{number:04}" not in existing]


def _range_count(preparation: Preparation) -> int:
    return 1 + preparation.survey["documents"] // _RANGE_DOCUMENTS


def find_duplicates(preparation: Preparation, task: tuple[int, int]) -> None:
    """Writes, for one range of hashes, which documents of each part have a text that occurred before.

    The file is `bounds` (parts + 1,) int64 and then the documents' numbers in their parts, int32: those of part p are
    entries bounds[p] to bounds[p + 1]. So a later task reads its own part's entries only.
    """
    number, ranges = task
    hashes, parts, documents = [], [], []
    for part, content in enumerate(_hashes(preparation)):
        of_part = np.frombuffer(content, f"S{HASH_BYTES}")
        # The first two bytes, scaled from 0 … 65535 to the range's number. SHA-256 is uniform, so ranges are of about
        # equal size.
        heads = of_part.view(">u2").reshape(len(of_part), HASH_BYTES // 2)[:, 0].astype(np.int64)
        rows = np.flatnonzero(heads * ranges >> 16 == number)
        hashes.append(of_part[rows])
        parts.append(np.full(len(rows), part, np.int32))
        documents.append(rows.astype(np.int32))
    # The sort is stable and the input is in corpus order: the first of equal hashes is the first document with that
    # text, and every one that equals its predecessor is a duplicate.
    order = np.argsort(np.concatenate(hashes), kind="stable")
    ordered = np.concatenate(hashes)[order]
    duplicates = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    bounds = np.searchsorted(np.concatenate(parts)[duplicates], np.arange(len(preparation.parts) + 1)).astype(np.int64)
    content = bounds.tobytes() + np.concatenate(documents)[duplicates].tobytes()
    preparation.work.write(f"duplicates/{number:04}", content)


def _hashes(preparation: Preparation) -> Iterator[bytes]:
    """The hashes of each part, read a few files at a time."""
    for first in range(0, len(preparation.parts), _FILES_AT_ONCE):
        parts = range(first, min(first + _FILES_AT_ONCE, len(preparation.parts)))
        yield from preparation.work.read_many([f"survey/{part:06}.hashes" for part in parts])


def _duplicates_in(preparation: Preparation, part: int) -> set[int]:
    """Numbers of the part's documents whose text occurred before."""
    duplicates: set[int] = set()
    header = 8 * (len(preparation.parts) + 1)  # bytes of `bounds`
    for number in range(_range_count(preparation)):
        name = f"duplicates/{number:04}"
        bounds = preparation.work.read(name, 8 * part, 8 * part + 16) or b""
        first, last = np.frombuffer(bounds, np.int64).tolist()
        if last > first:
            content = preparation.work.read(name, header + 4 * first, header + 4 * last) or b""
            duplicates |= set(np.frombuffer(content, np.int32).tolist())
    return duplicates


def corpus_documents(preparation: Preparation, part: int) -> Iterator[Document]:
    """The documents of a part that are in the corpus, in input order: no duplicates, and the sample of each source."""
    duplicates, shares = _duplicates_in(preparation, part), preparation.config.shares
    documents = read_part(preparation.parts[part], preparation.source_of(part), preparation.first_lines[part])
    for number, document in enumerate(documents):
        if number not in duplicates and in_sample(document, shares.get(document.source, 1.0)):
            yield document

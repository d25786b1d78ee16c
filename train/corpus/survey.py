"""The first stages: all documents counted, checked and compared, so that each text is taken once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.annotators import OwnLabels
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.reading import LineCount, read_part
from steerling_jax.train.corpus.split import keep
from steerling_jax.train.prepare.job import Preparation

_FILES_AT_ONCE = 64
_RANGE_DOCUMENTS = 1 << 24  # hashes that one task compares, about


def unread(job: Preparation) -> list[int]:
    return job.parts_without("survey")


def survey_part(job: Preparation, part: int) -> None:
    """Counts and hashes a part's documents. Reads all of it, so that what is wrong in it is told before heavy work."""
    source = job.sources[job.parts[part].source]
    own, lines = OwnLabels([concept.name for concept in job.concepts]), LineCount()
    counts: dict[str, int] = {}
    hashes, kept, characters = [], 0, 0
    for document in read_part(job.parts[part], source, 0, lines):
        own.ids_of(document)
        counts[document.source] = counts.get(document.source, 0) + 1
        kept += keep(document, job.shares.get(document.source, 1.0))
        characters += len(document.text)
        hashes.append(bytes.fromhex(document.sha256)[:16])
    job.work.write(f"survey/{part:06}.hashes", b"".join(hashes))
    about = {"sources": counts, "kept": kept, "characters": characters, "lines": lines.lines}
    job.work.write_json(f"survey/{part:06}.json", about)


def uncounted(job: Preparation) -> list[str]:
    return job.missing(["survey.json"])


def count_all(job: Preparation, name: str) -> None:
    """Puts the parts' counts together, for later tasks to read in one go."""
    names = [f"survey/{number:06}.json" for number in range(len(job.parts))]
    surveys = [json.loads(content) for content in job.work.read_many(names)]
    found = {name for survey in surveys for name in survey["sources"]}
    if missing := sorted(set(job.shares) - found):
        raise UserError(f"No document has the source {missing[0]!r}: use {', '.join(sorted(found))}.")
    if not sum(survey["kept"] for survey in surveys):
        raise UserError("No documents are left to make a corpus from: keep a larger share of the sources.")
    about: dict[str, Any] = {
        "documents": sum(sum(survey["sources"].values()) for survey in surveys),
        "characters": sum(survey["characters"] for survey in surveys),
        "lines": [survey["lines"] for survey in surveys],
    }
    job.work.write_json(name, about)


# Duplicates --------------------------------------------------------------------------------------------------------


def uncompared(job: Preparation) -> list[tuple[int, int]]:
    ranges = _ranges(job)
    done = job.work.names("duplicates")
    return [(number, ranges) for number in range(ranges) if f"duplicates/{number:04}" not in done]


def _ranges(job: Preparation) -> int:
    return 1 + job.survey["documents"] // _RANGE_DOCUMENTS


def compare(job: Preparation, task: tuple[int, int]) -> None:
    """Of all documents whose hash falls into a range, finds those whose text stands before, by part."""
    number, ranges = task
    hashes, owners, places = [], [], []
    for part, content in enumerate(_hashes(job)):
        mine = np.frombuffer(content, "S16")
        heads = mine.view(">u2").reshape(len(mine), 8)[:, 0].astype(np.int64)
        rows = np.flatnonzero(heads * ranges >> 16 == number)
        hashes.append(mine[rows])
        owners.append(np.full(len(rows), part, np.int32))
        places.append(rows.astype(np.int32))
    order = np.argsort(np.concatenate(hashes), kind="stable")
    ordered = np.concatenate(hashes)[order]
    again = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    bounds = np.searchsorted(np.concatenate(owners)[again], np.arange(len(job.parts) + 1)).astype(np.int64)
    job.work.write(f"duplicates/{number:04}", bounds.tobytes() + np.concatenate(places)[again].tobytes())


def _hashes(job: Preparation) -> Iterator[bytes]:
    """Each part's hashes; some files are read at once."""
    for first in range(0, len(job.parts), _FILES_AT_ONCE):
        parts = range(first, min(first + _FILES_AT_ONCE, len(job.parts)))
        yield from job.work.read_many([f"survey/{part:06}.hashes" for part in parts])


def _duplicates(job: Preparation, part: int) -> set[int]:
    """Numbers of the part's documents whose text stands somewhere before."""
    found: set[int] = set()
    head = 8 * (len(job.parts) + 1)
    for number in range(_ranges(job)):
        name = f"duplicates/{number:04}"
        first, last = np.frombuffer(job.work.read(name, 8 * part, 8 * part + 16) or b"", np.int64).tolist()
        if last > first:
            content = job.work.read(name, head + 4 * first, head + 4 * last) or b""
            found |= set(np.frombuffer(content, np.int32).tolist())
    return found


def documents(job: Preparation, part: int) -> Iterator[Document]:
    """The documents of a part that the corpus takes, in their order."""
    twice = _duplicates(job, part)
    source = job.sources[job.parts[part].source]
    for number, document in enumerate(read_part(job.parts[part], source, job.first_lines[part])):
        if number not in twice and keep(document, job.shares.get(document.source, 1.0)):
            yield document

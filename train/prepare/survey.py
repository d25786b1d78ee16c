"""Stages "reading" and "counting": all documents are read once, validated, counted and hashed."""

from __future__ import annotations

import json
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.annotators import DocumentLabels
from steerling_jax.train.corpus.reading import LineCount, read_part
from steerling_jax.train.corpus.split import in_sample
from steerling_jax.train.prepare.preparation import Preparation

HASH_BYTES = 16  # of each document's SHA-256, stored by the survey


def survey_tasks(preparation: Preparation) -> list[int]:
    """The parts that are not surveyed yet."""
    return preparation.parts_missing_in("survey")


def survey_part(preparation: Preparation, part: int) -> None:
    """Counts and hashes a part's documents. Raises `UserError` for invalid input, before any expensive stage."""
    plan = preparation.plan
    labels, lines = DocumentLabels([concept.name for concept in plan.concepts]), LineCount()
    counts: dict[str, int] = {}
    hashes, in_samples, characters = [], 0, 0
    # The number of the part's first line is still unknown (0): it follows from the line counts that this stage writes.
    for document in read_part(preparation.parts[part], preparation.source_of(part), 0, lines):
        labels.ids_of(document)
        counts[document.source] = counts.get(document.source, 0) + 1
        in_samples += in_sample(document, preparation.config.shares.get(document.source, 1.0))
        characters += len(document.text)
        hashes.append(bytes.fromhex(document.sha256)[:HASH_BYTES])
    preparation.work.write(f"survey/{part:06}.hashes", b"".join(hashes))
    about = {"sources": counts, "kept": in_samples, "characters": characters, "lines": lines.lines}
    preparation.work.write_json(f"survey/{part:06}.json", about)


def count_tasks(preparation: Preparation) -> list[str]:
    """The file of totals, if it does not exist yet."""
    return preparation.missing(["survey.json"])


def count_all(preparation: Preparation, name: str) -> None:
    """Sums the parts' counts into one file, so that later tasks read one file instead of one per part.

    Raises `UserError` for a share of a source that no document has, and if no documents are left.
    """
    names = [f"survey/{number:06}.json" for number in range(len(preparation.parts))]
    surveys = [json.loads(content) for content in preparation.work.read_many(names)]
    sources = {name for survey in surveys for name in survey["sources"]}
    if missing := sorted(set(preparation.config.shares) - sources):
        raise UserError(f"No document has the source {missing[0]!r}: use {', '.join(sorted(sources))}.")
    if not sum(survey["kept"] for survey in surveys):
        raise UserError("No documents are left to make a corpus from: keep a larger share of the sources.")
    about: dict[str, Any] = {
        "documents": sum(sum(survey["sources"].values()) for survey in surveys),
        "characters": sum(survey["characters"] for survey in surveys),
        "lines": [survey["lines"] for survey in surveys],
    }
    preparation.work.write_json(name, about)

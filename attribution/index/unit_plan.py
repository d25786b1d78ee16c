"""The plan of an index: which documents go into which unit.

A unit holds whole documents and is named after them, so it stays valid while the corpus grows or is shuffled. A plan
belongs to one state of the corpus and reuses the units that are finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from steerling_jax.attribution.index.settings import IndexSettings
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import IndexFolder, corpus_digest, document_keys, write_once


def indexed_documents(corpus: CorpusStore, splits: Sequence[str]) -> dict[str, int]:
    """Key and number of each document of these splits, in the corpus's order."""
    keys = document_keys(corpus)
    return {key: number for number, key in enumerate(keys) if corpus.documents[number].split in splits}


def make_plan(index: IndexFolder, corpus: CorpusStore, settings: IndexSettings) -> dict[str, list[str]]:
    """Maps each unit's name to the keys of its documents, for this state of the corpus.

    Finished units whose documents all exist are reused; the other documents are grouped in order. The plan depends on
    which units are finished, so several processes could compute different plans: the first one to write its plan
    decides, and all use that file. Raises `UserError` for a corpus without documents in these splits.
    """
    numbers = indexed_documents(corpus, settings.splits)
    if not numbers:
        raise UserError(f"The corpus {corpus.folder} has no documents in {' or '.join(settings.splits)} to index.")
    path = index.folder / "plans" / f"{corpus_digest(list(numbers))}.json"
    if path.is_file():
        return write_once(path, None)
    plan: dict[str, list[str]] = {}
    remaining = dict(numbers)
    for name in index.unit_names():
        documents = index.unit(name).metadata["documents"]
        if all(key in remaining for key in documents):
            plan[name] = documents
            for key in documents:
                del remaining[key]
    for documents in _groups(corpus, remaining, settings.unit_tokens):
        plan[corpus_digest(documents)] = documents
    return write_once(path, plan)


def _groups(corpus: CorpusStore, documents: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Keys of consecutive documents with at most `limit` tokens together; a longer document is a group by itself."""
    group, tokens = [], 0
    for key, number in documents.items():
        size = corpus.documents[number].end - corpus.documents[number].start
        if group and tokens + size > limit:
            yield group
            group, tokens = [], 0
        group.append(key)
        tokens += size
    if group:
        yield group


def unit_folder(index: IndexFolder, name: str) -> Path:
    """The folder of a unit."""
    return index.folder / "units" / name


def is_done(index: IndexFolder, name: str) -> bool:
    """Whether a unit is finished: its folder appears when it is complete."""
    return (unit_folder(index, name) / "unit.json").is_file()

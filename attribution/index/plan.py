"""What an index is made with, and which documents go into which unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from steerling_jax.attribution.index.influence import Projection
from steerling_jax.attribution.index.passages import Masking
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.io.corpus.store import SPLITS, CorpusStore
from steerling_jax.io.index import IndexFolder, corpus_digest, document_keys, write_once
from steerling_jax.models.steerling.fingerprint import fingerprint

# How a query is masked for its gradient: it is asked what it was written after, so most of that is shown.
QUERY_MASKING = Masking(level=0.25, draws=8)
_SIDE = 64


@dataclass(frozen=True)
class IndexSettings:
    """context: tokens of its document that a chunk is read after. unit_tokens: a unit is closed before it would have
    more. splits: of the corpus. gradient_side: keep every chunk's projected gradient, of that side (`Projection`), and
    compare all of them; 0: compute those of candidates when they are asked for. nulls: texts of nonsense for each
    threshold."""

    context: int = 64
    masking: Masking = field(default_factory=Masking)
    unit_tokens: int = 1 << 19
    splits: tuple[str, ...] = ("train",)
    gradient_side: int = 0
    nulls: int = 100

    def __post_init__(self) -> None:
        require(self.context >= 0, f"context is {self.context}, but it must not be negative.")
        require(self.unit_tokens >= 1, f"unit_tokens is {self.unit_tokens}, but it must be at least 1.")
        require(self.gradient_side >= 0, f"gradient_side is {self.gradient_side}, but it must not be negative.")
        require(self.nulls >= 10, f"nulls is {self.nulls}, but a threshold needs at least 10.")
        unknown = [split for split in self.splits if split not in SPLITS]
        require(not unknown and bool(self.splits), f"splits is {self.splits!r}: give some of {', '.join(SPLITS)}.")

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> IndexSettings:
        return cls(**saved | {"masking": Masking(**saved["masking"]), "splits": tuple(saved["splits"])})

    @property
    def projection(self) -> Projection:
        """Of gradients. Those that are not kept may be long."""
        return Projection(self.gradient_side or _SIDE)

    @property
    def gradient_masking(self) -> Masking:
        """Of a chunk for its gradient, which is noisier than its signature."""
        return replace(self.masking, draws=2 * self.masking.draws)


def description(corpus: CorpusStore, bundle: Bundle, settings: IndexSettings) -> dict[str, Any]:
    """What `index.json` says: an index is of one checkpoint, one vocabulary, one set of settings."""
    saved = asdict(settings)
    return {
        "fingerprint": fingerprint(bundle.params, bundle.config),
        "tokenizer_sha256": corpus.manifest["tokenizer_sha256"],
        "settings": saved | {"splits": list(settings.splits)},
    }


def check_model(index: IndexFolder, bundle: Bundle) -> None:
    """Raises `UserError` unless the index was made with this checkpoint."""
    if index.about["fingerprint"] != fingerprint(bundle.params, bundle.config):
        raise UserError(
            f"The index {index.folder} was made with another checkpoint than {bundle.name}: give that one with "
            "--model, or make an index of its own for this one."
        )


def indexed_documents(corpus: CorpusStore, splits: Sequence[str]) -> dict[str, int]:
    """Key to number of the corpus's documents in these splits, in order."""
    keys = document_keys(corpus)
    return {key: number for number, key in enumerate(keys) if corpus.documents[number].split in splits}


def make_plan(index: IndexFolder, corpus: CorpusStore, settings: IndexSettings) -> dict[str, list[str]]:
    """Unit to keys of its documents, for this state of the corpus: finished units whose documents are all there stay,
    the other documents are grouped in order. Decided once, by whichever process comes first."""
    numbers = indexed_documents(corpus, settings.splits)
    if not numbers:
        raise UserError(f"The corpus {corpus.folder} has no documents in {' or '.join(settings.splits)} to index.")
    path = index.folder / "plans" / f"{corpus_digest(list(numbers))}.json"
    if path.is_file():
        return write_once(path, None)
    plan: dict[str, list[str]] = {}
    left = dict(numbers)
    for name in index.unit_names():
        documents = index.unit(name).about["documents"]
        if all(key in left for key in documents):
            plan[name] = documents
            for key in documents:
                del left[key]
    for documents in _groups(corpus, left, settings.unit_tokens):
        plan[corpus_digest(documents)] = documents
    return write_once(path, plan)


def _groups(corpus: CorpusStore, left: dict[str, int], most: int) -> Iterator[list[str]]:
    """Keys of consecutive documents of at most `most` tokens together; a longer document stands alone."""
    group, tokens = [], 0
    for key, number in left.items():
        size = corpus.documents[number].end - corpus.documents[number].start
        if group and tokens + size > most:
            yield group
            group, tokens = [], 0
        group.append(key)
        tokens += size
    if group:
        yield group


def unit_folder(index: IndexFolder, name: str) -> Path:
    return index.folder / "units" / name


def is_done(index: IndexFolder, name: str) -> bool:
    return (unit_folder(index, name) / "unit.json").is_file()

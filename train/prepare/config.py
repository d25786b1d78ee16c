"""The values that decide a preparation: its inputs and its settings.

The command builds these objects once; each value is validated when its object is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from steerling_jax.errors import require
from steerling_jax.tokenizer import Tokenizer
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_table import TableSettings
from steerling_jax.train.corpus.ontology import ConceptDefinition
from steerling_jax.train.corpus.sources import TextSource


@dataclass(frozen=True)
class CorpusInputs:
    """What a corpus is made from.

    sources: files of documents. documents: documents in memory, used instead of `sources` (a local store only).
    concepts: the known concepts; None for the bundled ones. tables: labels made elsewhere. tokenizer: an existing
    vocabulary; None trains a SentencePiece vocabulary on the training split.
    """

    sources: Sequence[TextSource] = ()
    documents: Iterable[Document] | None = None
    concepts: Sequence[ConceptDefinition] | None = None
    tables: Sequence[TableSettings] = ()
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class PrepareConfig:
    """The settings that decide the store's content, beside its inputs.

    vocab_size: token ids of a vocabulary that is trained. chunk_tokens: upper bound of a chunk's length. seed: seed of
    the order of parts and documents. heldout_share: share of the documents that is held out. shares: share of the
    documents to keep, by source; a source not listed is kept whole. part_bytes: approximate size of a part; 0 chooses
    it from the total size. embeddings: the model over whose embeddings concepts are learned; empty for hashed words.

    Raises `UserError` for a value out of range.
    """

    vocab_size: int = 4096
    chunk_tokens: int = 64
    seed: int = 0
    heldout_share: float = 0.04
    shares: Mapping[str, float] = field(default_factory=dict)
    part_bytes: int = 0
    embeddings: str = ""

    def __post_init__(self) -> None:
        require(self.chunk_tokens >= 1, f"--chunk-tokens is {self.chunk_tokens}, but it must be at least 1.")
        require(self.part_bytes >= 0, f"--part-bytes is {self.part_bytes}, but it must be at least 0.")
        require(
            0 <= self.heldout_share < 1,
            f"--heldout-share is {self.heldout_share}, but it must be at least 0 and below 1.",
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shares": dict(sorted(self.shares.items()))}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> PrepareConfig:
        return cls(**saved)

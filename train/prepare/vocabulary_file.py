"""An existing vocabulary as a file of the working folder, so that every worker can load the same tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer
from steerling_jax.io.tokenizers.huggingface import TOKENIZER_FILE
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.tokenizer import SpecialIds, Tokenizer

SENTENCEPIECE_FILE = "tokenizer.model"
TIKTOKEN_FILE = "vocabulary.tiktoken"
FILES = (SENTENCEPIECE_FILE, TIKTOKEN_FILE, TOKENIZER_FILE)


@dataclass(frozen=True)
class VocabularyFile:
    """A vocabulary's file name and what its file does not contain: special ids and size. sha256: of the vocabulary."""

    special: SpecialIds
    vocab_size: int
    sha256: str
    file: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> VocabularyFile:
        values: dict[str, Any] = saved | {"special": SpecialIds(**saved["special"])}
        return cls(**values)

    def load(self, content: bytes) -> Tokenizer:
        """The tokenizer, from the file's content."""
        if self.file == TOKENIZER_FILE:
            return LibraryTokenizer.with_ids(content.decode(), self.file, self.special, self.vocab_size)
        kind = SentencePieceTokenizer if self.file == SENTENCEPIECE_FILE else TiktokenTokenizer
        return kind(content, self.special, self.vocab_size)


def vocabulary_file(tokenizer: Tokenizer) -> tuple[VocabularyFile, bytes]:
    """The description of a tokenizer's vocabulary and the content of its file.

    Raises `UserError` for a tokenizer that has ids only.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        name = SENTENCEPIECE_FILE
    elif isinstance(tokenizer, TiktokenTokenizer):
        name = TIKTOKEN_FILE
    elif isinstance(tokenizer, LibraryTokenizer):
        name = TOKENIZER_FILE
    else:
        raise UserError("A corpus needs a tokenizer with a vocabulary: give a model that has one.")
    return VocabularyFile(tokenizer.special, tokenizer.vocab_size, tokenizer.sha256, name), tokenizer.proto

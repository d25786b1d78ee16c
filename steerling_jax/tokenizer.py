"""The tokenizer interface, the special ids of a vocabulary, and the tokenizer for folders without a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from steerling_jax.errors import UserError

NO_ID = -1  # in place of a special id that a vocabulary lacks
SPECIALS = 5  # special ids of every vocabulary
TURN_TOKENS = 3  # further ids of an instruct model: start and end of a turn's role, end of the turn


@dataclass(frozen=True)
class SpecialIds:
    """The ids that stand for no text: mask, end of chunk, start of document, padding, end of document, end of turn.

    `NO_ID` for one that a vocabulary lacks, such as the mask of an autoregressive model.
    """

    mask_id: int
    endofchunk_id: int
    bos_id: int
    pad_id: int
    eos_id: int
    eot_id: int | None = None

    @classmethod
    def last_of(cls, vocab_size: int) -> SpecialIds:
        """The last five ids of a vocabulary, in the published order: eos, pad, bos, endofchunk, mask."""
        return cls(*(vocab_size - 1 - i for i in range(SPECIALS)))

    def names(self) -> dict[int, str]:
        """Printable names by id, such as `<|mask|>`."""
        named = ((f.name.removesuffix("_id"), getattr(self, f.name)) for f in fields(self))
        return {value: f"<|{name}|>" for name, value in named if value is not None and value != NO_ID}

    @property
    def headers(self) -> tuple[int, int]:
        """The ids before and after a turn's role, the two below the end of turn; for instruct models only."""
        assert self.eot_id is not None
        return self.eot_id - 2, self.eot_id - 1


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def special(self) -> SpecialIds:
        """The special ids."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids that the model expects before every text, such as the start of a document; `encode` does not add them."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of the vocabulary: tokenizers with equal hashes give equal ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special ones."""
        ...

    def piece(self, id: int) -> str:
        """Printable form of one id: spaces unchanged, control characters escaped."""
        ...


@runtime_checkable
class ByteTokenizer(Tokenizer, Protocol):
    """A tokenizer whose text is the bytes of its tokens, one after the other, decoded as UTF-8."""

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id adds to a text; none for special and unused ids."""
        ...


class IdsOnlyTokenizer:
    """The tokenizer of a model folder without a vocabulary: its text is ids in decimal, separated by spaces."""

    def __init__(self, special: SpecialIds, vocab_size: int):
        self.special, self.vocab_size = special, vocab_size
        self.prefix: tuple[int, ...] = ()
        self.sha256 = hashlib.sha256(f"ids only, {vocab_size}".encode()).hexdigest()
        self._names = special.names()

    def encode(self, text: str) -> list[int]:
        """The ids in `text`. Raises `UserError` for other text, and for ids outside the vocabulary."""
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise UserError(
                "This model folder has no tokenizer, so it cannot read text: give token ids with --prompt-ids."
            ) from None
        if bad := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise UserError(f"Token id {bad[0]} is outside the vocabulary: use ids from 0 to {self.vocab_size - 1}.")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The ids in decimal, without special ones."""
        return " ".join(str(int(i)) for i in ids if int(i) not in self._names)

    def piece(self, id: int) -> str:
        """The id in decimal, or a special token's name."""
        return self._names.get(int(id), str(int(id)))

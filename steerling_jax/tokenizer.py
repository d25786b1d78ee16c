"""What the project needs of a tokenizer: a protocol, and the special ids of a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Protocol

from steerling_jax.errors import UserError

SPECIALS = 5  # special ids of every vocabulary
TURN_TOKENS = 3  # further ids of an instruct model: start and end of a turn's role, end of the turn


@dataclass(frozen=True)
class SpecialIds:
    """The ids that are no text: what is masked, what ends a chunk, a document, a turn."""

    mask_id: int
    endofchunk_id: int
    bos_id: int
    pad_id: int
    eos_id: int
    eot_id: int | None = None

    @classmethod
    def last_of(cls, vocab_size: int) -> SpecialIds:
        """The published order, at the end of the vocabulary: … eos, pad, bos, endofchunk, mask."""
        return cls(*(vocab_size - 1 - i for i in range(SPECIALS)))

    def names(self) -> dict[int, str]:
        """Printable names by id, `<|mask|>` and so on."""
        named = ((f.name.removesuffix("_id"), getattr(self, f.name)) for f in fields(self))
        return {value: f"<|{name}|>" for name, value in named if value is not None}

    @property
    def headers(self) -> tuple[int, int]:
        """The ids around a turn's role, the two before the end of turn; of a model of conversations only."""
        assert self.eot_id is not None
        return self.eot_id - 2, self.eot_id - 1


class Tokenizer(Protocol):
    """What the rest of the house needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def special(self) -> SpecialIds:
        """The special ids."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the vocabulary: two tokenizers with one hash give the same ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special ones left out."""
        ...

    def piece(self, id: int) -> str:
        """One id in printable form: spaces stay, control characters are escaped."""
        ...


class IdsOnlyTokenizer:
    """For a model folder without a vocabulary: text is ids in decimal, separated by spaces."""

    def __init__(self, special: SpecialIds, vocab_size: int):
        self.special, self.vocab_size = special, vocab_size
        self.sha256 = hashlib.sha256(f"ids only, {vocab_size}".encode()).hexdigest()
        self._names = special.names()

    def encode(self, text: str) -> list[int]:
        """The ids written in `text`."""
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
        """The ids in decimal, special ones left out."""
        return " ".join(str(int(i)) for i in ids if int(i) not in self._names)

    def piece(self, id: int) -> str:
        """The id in decimal, or a special token's name."""
        return self._names.get(int(id), str(int(id)))

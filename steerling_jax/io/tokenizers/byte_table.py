"""Decoding for vocabularies whose every piece is a string of bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.tokenizer import SpecialIds


class ByteTable(ABC):
    """Decoding for vocabularies whose every piece is a string of bytes. `pieces[id]` is None where there is no text."""

    def __init__(self, pieces: Sequence[bytes | None], special: SpecialIds, vocab_size: int, sha256: str):
        self.vocab_size, self.special, self.sha256 = vocab_size, special, sha256
        self._names = special.names()
        if special.eot_id is not None:
            self._names |= dict(zip(special.headers, ("<|start_header_id|>", "<|end_header_id|>")))
        self._pieces = [None if i in self._names else piece for i, piece in enumerate(pieces)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special and unused ids are left out, half a character becomes U+FFFD."""
        table = self._pieces
        found = (table[i] for i in map(int, ids) if 0 <= i < len(table))
        return b"".join(piece for piece in found if piece is not None).decode("utf-8", errors="replace")

    def piece(self, id: int) -> str:
        """Printable form of one id; part of a character is shown as `<0xE2>`, an unused id as `<unused 7>`."""
        id = int(id)
        if id in self._names:
            return self._names[id]
        raw = self._pieces[id] if 0 <= id < len(self._pieces) else None
        if raw is None:
            return f"<unused {id}>"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (`{"role", "content"}` each), ending where the assistant is to speak.

        A turn is `<|start_header_id|>ROLE<|end_header_id|>\\n\\nTEXT<|endofchunk|><|eot_id|>`. Only for a model of
        conversations.
        """
        ids: list[int] = []
        for message in messages:
            ids += [*self._opened_turn(message["role"], message["content"]), *self.turn_end]
        return ids + self._opened_turn("assistant", "")

    @property
    def turn_end(self) -> list[int]:
        """What closes a turn, of a model of conversations."""
        assert self.special.eot_id is not None
        return [self.special.endofchunk_id, self.special.eot_id]

    def _opened_turn(self, role: str, text: str) -> list[int]:
        start, end = self.special.headers
        return [start, *self.encode(role), end, *self.encode(f"\n\n{text}")]


def read_vocabulary(path: str | Path) -> bytes:
    """A vocabulary file's bytes, or a `UserError` that names it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from error
    if not data:
        raise UserError(f"The vocabulary {path} is empty: copy it again.")
    return data

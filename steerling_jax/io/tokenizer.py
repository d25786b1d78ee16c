"""Text to token ids and back, behind one small protocol with three implementations.

SentencePiece for models trained here, tiktoken's cl100k for the published ones (in `cl100k.py`), and bare ids for a
model folder without a vocabulary. `encode` never makes a special token, whatever the text says; `decode` leaves
special tokens out.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from steerling_jax.errors import UserError

SPACE = "▁"  # how SentencePiece writes a space; a real one in the text is spelled out in bytes
SPECIALS = 5
TURN_TOKENS = 3  # that a model of conversations has after them: to open a turn's role, to close it, to end the turn


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


class SentencePieceTokenizer(ByteTable):
    """A SentencePiece model with byte fallback: any text comes back exactly (lone surrogates become `?`).

    `model` is a `tokenizer.model` file or its bytes (kept as `proto`). It holds `vocab_size - 5` pieces; the special
    ids follow them unless `special` says otherwise.
    """

    def __init__(self, model: str | Path | bytes, special: SpecialIds | None = None, vocab_size: int | None = None):
        import sentencepiece

        path = "The vocabulary" if isinstance(model, bytes) else model
        self.proto = proto = model if isinstance(model, bytes) else read_vocabulary(model)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
            count = self._model.get_piece_size()
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model, or is damaged: copy it again.") from error
        vocab_size = vocab_size or count + SPECIALS
        special = special or SpecialIds.last_of(vocab_size)
        if count > min(special.names()):
            raise UserError(
                f"{path} holds {count} pieces, which overlap the special ids from {min(special.names())} on: "
                "it belongs to another model."
            )
        super().__init__([self._bytes(i) for i in range(count)], special, vocab_size, hashlib.sha256(proto).hexdigest())
        self._escaped_space = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def _bytes(self, id: int) -> bytes | None:
        if self._model.is_byte(id):
            return bytes([int(self._model.id_to_piece(id)[3:-1], 16)])
        if self._model.is_unknown(id) or self._model.is_control(id):
            return None
        return self._model.id_to_piece(id).replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""
        first, *rest = text.encode("utf-8", errors="replace").decode().split(SPACE)
        ids = self._model.encode(first)
        for part in rest:
            ids += self._escaped_space + self._model.encode(part)
        return ids


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


def vocabulary_file(folder: str | Path) -> Path | None:
    """The vocabulary in a folder of a model, run or corpus: `tokenizer.model`, else a `.tiktoken` file."""
    found = [Path(folder, "tokenizer.model"), *sorted(Path(folder).glob("*.tiktoken"))]
    return next((path for path in found if path.is_file()), None)


def load_tokenizer(folder: str | Path, special: SpecialIds, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder with a vocabulary; of one without, bare ids."""
    path = vocabulary_file(folder)
    if path is None:
        return IdsOnlyTokenizer(special, vocab_size)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path, special, vocab_size)
    from steerling_jax.io.cl100k import TiktokenTokenizer  # it needs tiktoken, which is optional

    return TiktokenTokenizer(path, special, vocab_size)


def read_vocabulary(path: str | Path) -> bytes:
    """A vocabulary file's bytes, or a `UserError` that names it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from error
    if not data:
        raise UserError(f"The vocabulary {path} is empty: copy it again.")
    return data

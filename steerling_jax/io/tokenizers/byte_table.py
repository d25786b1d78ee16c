"""The base class of tokenizers whose pieces are byte strings: decoding, printable pieces, chat prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.tokenizer import SpecialIds


class ByteTable(ABC):
    """A tokenizer whose pieces are byte strings; `pieces[id]` is None for an id without text."""

    prefix: tuple[int, ...] = ()

    def __init__(
        self,
        pieces: Sequence[bytes | None],
        special: SpecialIds,
        vocab_size: int,
        sha256: str,
        names: Mapping[int, str] | None = None,
    ):
        """names: printable names of all special ids by id; default, those of `special`."""
        self.vocab_size, self.special, self.sha256 = vocab_size, special, sha256
        self._names = dict(special.names() if names is None else names)
        if special.eot_id is not None:
            self._names |= dict(zip(special.headers, ("<|start_header_id|>", "<|end_header_id|>")))
        self._pieces = [None if i in self._names else piece for i, piece in enumerate(pieces)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special and unused ids; an incomplete UTF-8 character becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id adds to a text; none for special and unused ids."""
        id = int(id)
        return (self._pieces[id] if 0 <= id < len(self._pieces) else None) or b""

    def piece(self, id: int) -> str:
        """Printable form of one id: part of a UTF-8 character as `<0xE2>`, an unused id as `<unused 7>`."""
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

    @property
    def has_chat_template(self) -> bool:
        """Whether the vocabulary has what `chat_prompt` needs: the model was trained for conversations."""
        return self.special.eot_id is not None

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (messages with `role` and `content`), ending with the header of the assistant's turn.

        A turn is `<|start_header_id|>ROLE<|end_header_id|>\\n\\nTEXT<|endofchunk|><|eot_id|>`.
        For instruct models only.
        """
        ids: list[int] = []
        for message in messages:
            ids += [*self._turn_start(message["role"], message["content"]), *self.turn_end]
        return ids + self._turn_start("assistant", "")

    def chat_prompts(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """`chat_prompt` of each conversation."""
        return [self.chat_prompt(messages) for messages in conversations]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer after its prompt, with the end of the turn."""
        return [*self.encode(text), *self.turn_end]

    @property
    def turn_end(self) -> list[int]:
        """The ids that end a turn; for instruct models only."""
        assert self.special.eot_id is not None
        return [self.special.endofchunk_id, self.special.eot_id]

    def _turn_start(self, role: str, text: str) -> list[int]:
        start, end = self.special.headers
        return [start, *self.encode(role), end, *self.encode(f"\n\n{text}")]


def read_vocabulary(path: str | Path) -> bytes:
    """A vocabulary file's bytes. Raises `UserError` if it cannot be read or is empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from error
    if not data:
        raise UserError(f"The vocabulary {path} is empty: copy it again.")
    return data

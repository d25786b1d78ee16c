"""cl100k, the vocabulary of the published models, and the chat template of the instruct ones."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizer import ByteTable, SpecialIds, read_vocabulary


class TiktokenTokenizer(ByteTable):
    """cl100k, the vocabulary of the published models, from a `.tiktoken` file the user has."""

    PUBLISHED = SpecialIds(mask_id=100280, endofchunk_id=100279, bos_id=100278, pad_id=100277, eos_id=100257)
    START_HEADER, END_HEADER, EOT = 100281, 100282, 100283  # the instruct models' own
    _SPLIT = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )

    def __init__(self, path: str | Path, special: SpecialIds = PUBLISHED, vocab_size: int | None = None):
        try:
            import tiktoken
        except ImportError as error:
            raise UserError(f"Reading {path} needs tiktoken: pip install 'steerling-jax[tiktoken]'.") from error
        data = read_vocabulary(path)
        ranks = self._ranks(data, path)
        count = max(ranks.values()) + 1
        try:
            self._encoding = tiktoken.Encoding(
                Path(path).name, pat_str=self._SPLIT, mergeable_ranks=ranks, special_tokens={}
            )
        except Exception as error:
            raise UserError(f"{path} is not a complete tiktoken vocabulary: download it again.") from error
        pieces: list[bytes | None] = [None] * count
        for piece, rank in ranks.items():
            pieces[rank] = piece
        super().__init__(pieces, special, vocab_size or max(special.names()) + 1, hashlib.sha256(data).hexdigest())
        if count > min(self._names):
            raise UserError(
                f"{path} holds {count} tokens, which overlap the special ids from {min(self._names)} on: "
                "it belongs to another model."
            )
        if special.eot_id is not None:
            self._names |= {self.START_HEADER: "<|start_header_id|>", self.END_HEADER: "<|end_header_id|>"}

    @staticmethod
    def _ranks(data: bytes, path: str | Path) -> dict[bytes, int]:
        """The file's lines, `base64 rank`. tiktoken's own loader caches files by path, so it would miss a new one."""
        try:
            ranks = {
                base64.b64decode(piece, validate=True): int(rank) for piece, rank in map(bytes.split, data.splitlines())
            }
        except ValueError as error:
            raise UserError(f"{path} is not a tiktoken vocabulary, or is damaged: download it again.") from error
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise UserError(f"{path} is not a complete tiktoken vocabulary: download it again.")
        return ranks

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never special ones."""
        return self._encoding.encode_ordinary(text)

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation (`{"role", "content"}` each), ending where the assistant is to speak.

        A turn is `<|start_header_id|>ROLE<|end_header_id|>\\n\\nTEXT<|endofchunk|><|eot_id|>`.
        """
        ids: list[int] = []
        for message in messages:
            ids += self._opened_turn(message["role"], message["content"])
            ids += [self.special.endofchunk_id, self.EOT]
        return ids + self._opened_turn("assistant", "")

    def _opened_turn(self, role: str, text: str) -> list[int]:
        return [self.START_HEADER, *self.encode(role), self.END_HEADER, *self.encode(f"\n\n{text}")]

"""SentencePiece vocabularies: the tokenizer of models that were trained here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.byte_table import ByteTable, read_vocabulary
from steerling_jax.tokenizer import SPECIALS, SpecialIds

SPACE = "▁"  # how SentencePiece writes a space; a real one in the text is spelled out in bytes


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

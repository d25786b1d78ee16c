"""SentencePiece vocabularies: the tokenizer of models trained with this package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.byte_table import ByteTable, read_vocabulary
from steerling_jax.tokenizer import SPECIALS, SpecialIds

SPACE = "▁"  # stands for a space inside SentencePiece; the character itself is encoded as bytes


class SentencePieceTokenizer(ByteTable):
    """A SentencePiece model with byte fallback: decoding restores any text exactly (lone surrogates become `?`).

    model: a `tokenizer.model` file, or its content (available as `proto`), with `vocab_size - 5` pieces. special:
    default, the five ids after the pieces. Raises `UserError` if the file is damaged or has more pieces than the model.
    """

    def __init__(self, model: str | Path | bytes, special: SpecialIds | None = None, vocab_size: int | None = None):
        import sentencepiece

        path = "The vocabulary" if isinstance(model, bytes) else model
        self.proto = proto = model if isinstance(model, bytes) else read_vocabulary(model)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
            count = self._model.get_piece_size()
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model, or it is damaged: copy it again.") from error
        vocab_size = vocab_size or count + SPECIALS
        special = special or SpecialIds.last_of(vocab_size)
        if count > min(special.names()):
            raise UserError(
                f"{path} holds {count} pieces, which overlap the special ids from {min(special.names())} on: "
                "the vocabulary belongs to another model."
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
        # SentencePiece would decode `▁` as a space. So the text is split there, and the character encoded as bytes.
        first, *rest = text.encode("utf-8", errors="replace").decode().split(SPACE)
        ids = self._model.encode(first)
        for part in rest:
            ids += self._escaped_space + self._model.encode(part)
        return ids

"""The vocabulary in the metadata of a GGUF file: pieces, their types, and special ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader

_PREFIX = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # types of pieces
# Special ids that end a text, by their keys, and by the pieces that chat models end a turn with. Files of chat models
# often name the end of a document only.
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_PIECES = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")


class GgufVocabulary:
    """The metadata of a vocabulary, with errors that name the file and the field."""

    def __init__(self, header: GgufHeader):
        self.path: Path = header.path
        self._metadata = header.metadata

    @property
    def kind(self) -> str | None:
        """The name of the algorithm; None for a file without a vocabulary."""
        kind = self.get("model")
        return None if kind in (None, "none", "no_vocab") else str(kind)

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template."""
        source = self._metadata.get("tokenizer.chat_template")
        return source if isinstance(source, str) else None

    def get(self, key: str) -> Any:
        """The value at a key of the vocabulary; None if it is missing."""
        return self._metadata.get(_PREFIX + key)

    @property
    def tokens(self) -> list[str]:
        """The pieces by id."""
        return self._texts("tokens")

    def merges(self) -> list[str]:
        """The merges, most important first."""
        return self._texts("merges")

    def types(self) -> np.ndarray:
        """The type of each piece."""
        return self._numbers("token_type")

    def scores(self) -> np.ndarray:
        """The score of each piece."""
        return self._numbers("scores")

    def id(self, key: str) -> int | None:
        """The special id at `key`; None if it is missing, or an unsigned −1."""
        value = self.get(key)
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def flag(self, key: str, default: bool) -> bool:
        """The boolean at `key`."""
        value = self.get(key)
        return value if isinstance(value, bool) else default

    def end_ids(self) -> list[int]:
        """The ids that end a text."""
        named = (self.id(key) for key in _END_KEYS)
        tokens, types = self.tokens, self.types()
        ends = {int(id) for id in np.flatnonzero(types == CONTROL) if tokens[id] in _END_PIECES}
        return sorted(ends | {id for id in named if id is not None})

    def _texts(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, list) or not value:
            raise UserError(f"{self.path} has no list of texts {_PREFIX}{key}; use a file with a complete vocabulary.")
        return value

    def _numbers(self, key: str) -> np.ndarray:
        value = self.get(key)
        if not isinstance(value, np.ndarray) or value.size != len(self.tokens):
            raise UserError(
                f"{self.path} has no {_PREFIX}{key} with a number for each of its {len(self.tokens)} tokens; "
                "use a file with a complete vocabulary."
            )
        return value

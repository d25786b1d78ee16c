"""cl100k, the vocabulary of the published models."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.byte_table import ByteTable, read_vocabulary
from steerling_jax.tokenizer import SpecialIds

# tiktoken's regular expression engine panics on about a million spaces before a word, with an error that is not derived
# from Exception and could not be caught as one.
_MAX_SPACE = 100_000


class TiktokenTokenizer(ByteTable):
    """cl100k, the vocabulary of the published models, from a `.tiktoken` file.

    path: the file, or its content (available as `proto`). Raises `UserError` if tiktoken is not installed, or the file
    is damaged or has more tokens than the model.
    """

    PUBLISHED = SpecialIds(mask_id=100280, endofchunk_id=100279, bos_id=100278, pad_id=100277, eos_id=100257)
    EOT = 100283  # end of turn, in instruct models
    _SPLIT = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )

    def __init__(self, path: str | Path | bytes, special: SpecialIds = PUBLISHED, vocab_size: int | None = None):
        try:
            import tiktoken
        except ImportError as error:
            raise UserError(f"Reading {path} needs tiktoken: pip install 'steerling-jax[tiktoken]'.") from error
        self.proto = data = path if isinstance(path, bytes) else read_vocabulary(path)
        path = "The vocabulary" if isinstance(path, bytes) else path
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
                "the vocabulary belongs to another model."
            )

    @staticmethod
    def _ranks(data: bytes, path: str | Path) -> dict[bytes, int]:
        """The ranks in the file's lines, `base64 rank`.

        tiktoken's own loader caches files by path, and would not notice that a file was replaced.
        """
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
        """Ids of `text`, never special ones. White space is split after every 100,000 consecutive characters."""
        return [i for part in _parts(text) for i in self._encoding.encode_ordinary(part)]


def _parts(text: str) -> Iterator[str]:
    """The text in parts, split within white space that is too long for tiktoken."""
    start = 0
    if len(text) > _MAX_SPACE:
        for run in re.finditer(r"\s+", text):
            for cut in range(run.start() + _MAX_SPACE, run.end(), _MAX_SPACE):
                yield text[start:cut]
                start = cut
    yield text[start:]

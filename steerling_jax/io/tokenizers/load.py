"""Text to token ids and back, behind one small protocol with three implementations.

SentencePiece for models trained here, tiktoken's cl100k for the published ones (in `cl100k.py`), and bare ids for a
model folder without a vocabulary. `encode` never makes a special token, whatever the text says; `decode` leaves
special tokens out.
"""

from __future__ import annotations

from pathlib import Path

from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds, Tokenizer


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
    from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer  # it needs tiktoken, which is optional

    return TiktokenTokenizer(path, special, vocab_size)

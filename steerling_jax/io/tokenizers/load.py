"""Loads the tokenizer of a model, a run or a corpus from its folder.

There are four kinds: SentencePiece for models trained with this package, tiktoken's cl100k for the published ones, the
`tokenizers` library for other families, and plain ids for a folder without a vocabulary. `encode` never produces a
special token, whatever the text contains; `decode` leaves special tokens out.
"""

from __future__ import annotations

from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.text_files import read_text
from steerling_jax.io.tokenizers.huggingface import TOKENIZER_FILE, converted_from, huggingface_tokenizer
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.tokenizer import NO_ID, IdsOnlyTokenizer, SpecialIds, Tokenizer


def vocabulary_file(folder: str | Path) -> Path | None:
    """The vocabulary file in a folder: `tokenizer.model`, else a `.tiktoken` file, else `tokenizer.json`, else None."""
    # Hidden files are not candidates: macOS puts a binary `._NAME.tiktoken` beside a file that it copies.
    tiktoken = sorted(Path(folder).glob("[!.]*.tiktoken"))
    candidates = [Path(folder, "tokenizer.model"), *tiktoken, Path(folder, TOKENIZER_FILE)]
    return next((path for path in candidates if path.is_file()), None)


def load_tokenizer(folder: str | Path, special: SpecialIds, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder; one that reads and writes plain ids if the folder has no vocabulary."""
    path = vocabulary_file(folder)
    if path is None:
        return IdsOnlyTokenizer(special, vocab_size)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path, special, vocab_size)
    if path.name == TOKENIZER_FILE:
        return LibraryTokenizer.with_ids(read_text(path), str(path), special, vocab_size)
    from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer  # needs tiktoken, which is optional

    return TiktokenTokenizer(path, special, vocab_size)


def load_decoder_tokenizer(folder: str | Path, special: SpecialIds, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model of another family: from `tokenizer.json`, else as `load_tokenizer`.

    A `tokenizer.json` that was converted from another file of the folder stands for that file, which is read instead.
    Raises `UserError` for a folder with another form of a vocabulary, or with that of another model.
    """
    folder = Path(folder)
    original = converted_from(folder)
    if (folder / TOKENIZER_FILE).is_file() and original is None:
        ids = [id for id in (special.bos_id, special.eos_id) if id != NO_ID]
        return huggingface_tokenizer(folder, vocab_size, ids)
    other = next((name for name in ("vocab.json", "vocab.txt") if (folder / name).is_file()), None)
    if other is not None and original is None:
        raise UserError(
            f"{folder} has {other} but no {TOKENIZER_FILE}, which is needed; copy it from the model's repository."
        )
    return load_tokenizer(folder, special, vocab_size)

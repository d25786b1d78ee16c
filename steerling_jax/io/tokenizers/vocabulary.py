"""Trains vocabularies from text, with SentencePiece."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.tokenizers.sentencepiece import SPACE
from steerling_jax.tokenizer import SPECIALS


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a SentencePiece model of `vocab_size - 5` pieces; returns the content of a `tokenizer.model` file.

    Byte-pair encoding depends on counts only, so the same texts give the same model on any machine. The text is not
    normalised; indentation may form pieces, each digit is a piece, unknown characters are encoded as bytes. Raises
    `UserError` with the largest or the smallest size that is possible, if `vocab_size` is not.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_slices(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size - SPECIALS,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9999,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_size_message(vocab_size, str(error)), "vocab_size") from error
    return model.getvalue()


def _size_message(vocab_size: int, reason: str) -> str:
    """What to do where SentencePiece cannot make a vocabulary of this size; `reason` is its message."""
    cannot = f"Cannot make a vocabulary of {vocab_size} tokens from this text"
    if largest := re.search(r"value <= (\d+)", reason):
        return f"{cannot}: --vocab-size can be at most {int(largest[1]) + SPECIALS}; lower it, or give more text."
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return f"{cannot}: --vocab-size must be at least {int(smallest[1]) + SPECIALS} for its characters; raise it."
    return f"{cannot} ({error_summary(reason)}); choose another --vocab-size, or give more text."


def train_word_vocabulary(texts: Iterable[str]) -> bytes:
    """Trains a SentencePiece model with a piece for each word between spaces, however rare, most frequent first.

    Words that are not in `texts` are unknown. Source: SentencePiece's model type `word`.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="word",
        vocab_size=1 << 20,
        hard_vocab_limit=False,
        use_all_vocab=True,
        normalization_rule_name="identity",
        character_coverage=1.0,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _slices(texts: Iterable[str], size: int = 100_000) -> Iterator[str]:
    """Splits long texts: the trainer silently skips sentences longer than its limit."""
    for text in texts:
        text = text.encode("utf-8", errors="replace").decode().replace(SPACE, " ")
        for start in range(0, len(text), size):
            yield text[start : start + size]

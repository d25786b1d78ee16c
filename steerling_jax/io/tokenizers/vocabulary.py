"""New vocabularies, made with SentencePiece from a corpus's own text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.sentencepiece import SPACE
from steerling_jax.tokenizer import SPECIALS


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece model of `vocab_size - 5` pieces, as the bytes of a `tokenizer.model` file.

    Byte-pair encoding: counts only, so the same texts give the same model on any machine. Text is taken as it is (no
    normalisation), indentation gets pieces of its own, digits stand alone, unknown characters are spelled out in bytes.
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
        raise UserError(
            f"Cannot make a vocabulary of {vocab_size} tokens from this text: "
            "choose a vocab_size between 400 and what so much text fills."
        ) from error
    return model.getvalue()


def train_word_vocabulary(texts: Iterable[str]) -> bytes:
    """A SentencePiece model with a piece for every word between spaces, most frequent first; others are unknown.

    Raises nothing for a word that is rare: all are kept. Source of the settings: SentencePiece's model type `word`.
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
    """Long texts in parts: the trainer silently skips what is over its limit."""
    for text in texts:
        text = text.encode("utf-8", errors="replace").decode().replace(SPACE, " ")
        for start in range(0, len(text), size):
            yield text[start : start + size]

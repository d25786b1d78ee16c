"""Loads a model's vocabulary, for a corpus in the model's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerling_jax.bundle import special_ids
from steerling_jax.errors import UserError
from steerling_jax.io.hub import resolve
from steerling_jax.io.tokenizers.load import load_decoder_tokenizer, load_tokenizer
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.tokenizer import TURN_TOKENS, IdsOnlyTokenizer, Tokenizer


def model_tokenizer(model: str | Path) -> Tokenizer:
    """The tokenizer of a model (a folder, a bundled model's name or a Hub id), with the special ids of its config.

    The ids that mark turns of a conversation are left out: documents do not contain them. Raises `UserError` for a
    model without a vocabulary.
    """
    from steerling_jax.io.checkpoints.parameters import read_model_config  # Orbax takes a second to import

    folder = resolve(model)
    config = read_model_config(folder)
    special, size = special_ids(config), config.vocab_size
    if isinstance(config, DecoderConfig):
        tokenizer = load_decoder_tokenizer(folder, special, size)
        if isinstance(tokenizer, IdsOnlyTokenizer):
            raise UserError(f"{folder} has no vocabulary: add its tokenizer.json.")
        return tokenizer
    if special.eot_id is not None:
        special, size = replace(special, eot_id=None), size - TURN_TOKENS
    tokenizer = load_tokenizer(folder, special, size)
    if isinstance(tokenizer, IdsOnlyTokenizer):
        raise UserError(f"{folder} has no vocabulary: add its tokenizer.model or .tiktoken file.")
    return tokenizer

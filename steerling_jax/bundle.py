"""A model ready to use: configuration, parameters, tokenizer and concept catalogue in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.published_config import PublishedExtras
from steerling_jax.tokenizer import SpecialIds, Tokenizer


@dataclass(frozen=True)
class Bundle:
    """A model ready to use. `concept_names[i]` names known concept i, where the model's folder says so."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    compute: Compute = field(default_factory=Compute)
    name: str = ""
    extras: PublishedExtras = field(default_factory=PublishedExtras)
    concept_names: tuple[str, ...] | None = None
    folder: Path | None = None
    catalogue: Catalogue | None = None

    @cached_property
    def concepts(self) -> Catalogue:
        """The catalogue of the model's concepts, without names where none was loaded. Raises `UserError` for a model
        without concepts."""
        if self.catalogue is not None:
            return self.catalogue
        known, discovered = concept_counts(self.config)
        if known == 0:
            raise UserError("A catalogue needs a model with concepts; this one is a bare backbone.")
        return Catalogue((), known, discovered)


def check_token_ids(token_ids: Any, config: ModelConfig, what: str = "token_ids") -> np.ndarray:
    """Token ids as int32 (B, T). `UserError` when empty, ragged, too long, no integers, or not in the vocabulary."""
    try:
        tokens = np.asarray(token_ids)
    except ValueError:
        raise UserError(f"{what} has rows of different lengths; give rows of one length.") from None
    if tokens.size == 0:
        raise UserError(f"{what} is empty; give at least one token.")
    if tokens.ndim not in (1, 2):
        raise UserError(f"{what} has the shape {tokens.shape}; give (T,) or (B, T).")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"{what} holds {tokens.dtype} values; give integer token ids.")
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise UserError(f"{what} holds the id {outside[0]}, outside the vocabulary of {config.vocab_size}.")
    if tokens.shape[-1] > config.block_size:
        raise UserError(f"{what} has {tokens.shape[-1]} tokens, more than the model's context of {config.block_size}.")
    return np.atleast_2d(tokens).astype(np.int32)


def encode(bundle: Bundle, text_or_ids: str | Sequence[int], what: str) -> np.ndarray:
    """Text through the model's tokenizer, or ids as they are, to checked ids (T,) int32."""
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise UserError(f"{what} is empty; give some text.")
        text_or_ids = bundle.tokenizer.encode(text_or_ids)
    tokens = check_token_ids(text_or_ids, bundle.config, what)
    if tokens.shape[0] != 1:
        raise UserError(f"{what} has {tokens.shape[0]} rows; give one at a time.")
    return tokens[0]


def check_weights(params: Params, name: str) -> None:
    """Raises `UserError` where a weight is no number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not bool(jnp.isfinite(leaf).all()):
            where = "/".join(str(getattr(key, "key", key)) for key in path)
            raise UserError(f"{name or 'The model'} has a weight in {where} that is no number (NaN): load a sound one.")


def special_ids(config: ModelConfig) -> SpecialIds:
    """The special ids of a configuration, in the form that tokenizers take."""
    return SpecialIds(
        mask_id=config.mask_token_id,
        endofchunk_id=config.endofchunk_token_id,
        bos_id=config.bos_token_id,
        pad_id=config.pad_token_id,
        eos_id=config.eos_token_id,
        eot_id=config.eot_id,
    )

"""A model ready to use: configuration, parameters, tokenizer and concept catalogue in one value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import Concept
from steerling_jax.concepts.features import Features
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Backbone, BackboneConfig, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import model_backbone
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.published_config import PublishedExtras
from steerling_jax.tokenizer import NO_ID, SpecialIds, Tokenizer


@dataclass(frozen=True, repr=False)
class Bundle:
    """A model ready to use, as `sj.load` returns it; the first argument of the functions of this package.

    Steerling models and decoders of other families (Llama, Qwen3, Gemma, …) are both bundles. Functions that need
    concepts or diffusion blocks refuse the latter with a `UserError`; `backbone` and `tokenizer` work for all.

    Attributes:
        config: sizes and options of the model: a `ModelConfig` for Steerling, a `DecoderConfig` for other families.
        params: the parameters, nested dicts of arrays; layers are stacked on a leading axis.
        tokenizer: encodes text to ids and decodes ids to text.
        compute: dtypes of activations and matrix products.
        name: what the model was loaded as, for messages and reports.
        extras: what the published folder says beyond the config, for a later export.
        concept_names: names of the known concepts by id; None if the model's folder has no `concepts.json`.
        folder: the folder that the model was loaded from; None for a model made in memory.
        catalogue: the loaded catalogue of concepts; `concepts` is also defined without one.
        strengths: default strengths of steering by action, "amplify" or "suppress", measured for this model; empty if
            its folder has no `steering.json`.
        features: those of an autoencoder, with which the model is steered (`sj.with_features`); None without one.
        bottleneck_features: what is known of single features of the model's bottleneck (`sj.attach_bottleneck`).

    Example:
        >>> bundle = sj.load()
        >>> ids = bundle.tokenizer.encode("Regular expressions")
        >>> result = sj.forward(bundle, ids)
        >>> concept = bundle.concepts.get(3)
    """

    config: Any
    params: Params
    tokenizer: Tokenizer
    compute: Compute = field(default_factory=Compute)
    name: str = ""
    extras: PublishedExtras = field(default_factory=PublishedExtras)
    concept_names: tuple[str, ...] | None = None
    folder: Path | None = None
    catalogue: Catalogue | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    features: Features | None = None
    bottleneck_features: tuple[Concept, ...] = ()

    def __repr__(self) -> str:
        size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        about = (
            f"Bundle {self.name!r}: {self.backbone.n_layers} layers of width {self.backbone.width}, {size:,} parameters"
        )
        if isinstance(self.config, ModelConfig) and self.config.concept is not None:
            known, discovered = concept_counts(self.config)
            about += f", {known} known and {discovered} discovered concepts"
        return f"{about}, {self.compute.dtype}"

    @cached_property
    def concepts(self) -> Catalogue:
        """The catalogue of the model's concepts; without names if none was loaded.

        Raises `UserError` for a model without concepts.
        """
        if self.catalogue is not None:
            return self.catalogue
        known, discovered = concept_counts(self.config)
        if known == 0:
            raise UserError("A catalogue needs a model with concepts; this one is a bare backbone.")
        return Catalogue((), known, discovered)

    @property
    def backbone(self) -> Backbone:
        """The model as a `Backbone`: the same object for equal configurations, so that programs are compiled once."""
        return model_backbone(self.config, self.compute)


def check_token_ids(token_ids: Any, config: BackboneConfig, argument: str = "token_ids") -> np.ndarray:
    """Validates token ids (T,) or (B, T) and returns them as int32 (B, T).

    Raises `UserError`, naming `argument`, if they are empty, of unequal lengths, too long for the model, not integers,
    or outside the vocabulary.
    """
    try:
        tokens = np.asarray(token_ids)
    except ValueError:
        raise UserError(f"{argument} has rows of different lengths; give rows of one length.") from None
    if tokens.size == 0:
        raise UserError(f"{argument} is empty; give at least one token.")
    if tokens.ndim not in (1, 2):
        raise UserError(f"{argument} has the shape {tokens.shape}; give (T,) or (B, T).")
    if tokens.dtype == object or tokens.dtype == np.float64:
        _check_large_ids(token_ids, config, argument)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"{argument} holds {tokens.dtype} values; give integer token ids.")
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise UserError(f"{argument} holds the id {outside[0]}, outside the vocabulary of {config.vocab_size}.")
    if tokens.shape[-1] > config.context_length:
        raise UserError(
            f"{argument} has {tokens.shape[-1]} tokens, more than the model's context of {config.context_length}."
        )
    return np.atleast_2d(tokens).astype(np.int32)


def _check_large_ids(token_ids: Any, config: BackboneConfig, argument: str) -> None:
    """Raises `UserError` for whole numbers of which some fit no integer type of NumPy, which makes the array one of
    objects or floats."""
    for value in np.asarray(token_ids, object).flat:
        if type(value) is not int:
            return
        if not 0 <= value < config.vocab_size:
            shown = value if abs(value) < 2**128 else "a number of more than 38 digits"
            raise UserError(f"{argument} holds the id {shown}, outside the vocabulary of {config.vocab_size}.")


def encode(bundle: Bundle, text_or_ids: str | Sequence[int], argument: str, *, prefix: bool = True) -> np.ndarray:
    """Encodes text with the model's tokenizer, or takes ids as they are; returns validated ids (T,) int32.

    A text gets the ids that the model expects before every text, such as the start of a document; without `prefix` it
    does not, as a continuation.
    Raises `UserError`, naming `argument`, for an empty text or invalid ids.
    """
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise UserError(f"{argument} is empty; give some text.")
        text_or_ids = [*(bundle.tokenizer.prefix if prefix else ()), *bundle.tokenizer.encode(text_or_ids)]
    tokens = check_token_ids(text_or_ids, bundle.config, argument)
    if tokens.shape[0] != 1:
        raise UserError(f"{argument} has {tokens.shape[0]} rows; give one at a time.")
    return tokens[0]


def check_weights(params: Params, name: str) -> None:
    """Raises `UserError` if a parameter contains NaN or infinite values; `name` is the model's, for the message."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not bool(jnp.isfinite(leaf).all()):
            where = "/".join(str(getattr(key, "key", key)) for key in path)
            raise UserError(
                f"{name or 'The model'}: {where} contains NaN or infinite values; the checkpoint is damaged, "
                "load another one."
            )


def special_ids(config: ModelConfig | DecoderConfig) -> SpecialIds:
    """The special ids of a config, in the form that tokenizers take."""
    if isinstance(config, DecoderConfig):
        bos, pad, eos = config.bos_token_id, config.pad_token_id, next(iter(config.eos_token_ids), None)
        return SpecialIds(NO_ID, NO_ID, *(NO_ID if value is None else value for value in (bos, pad, eos)))
    return SpecialIds(
        mask_id=config.mask_token_id,
        endofchunk_id=config.endofchunk_token_id,
        bos_id=config.bos_token_id,
        pad_id=config.pad_token_id,
        eos_id=config.eos_token_id,
        eot_id=config.eot_id,
    )

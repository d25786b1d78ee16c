"""A Hugging Face `config.json` of a supported decoder family as a `DecoderConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.models.decoder import gemma, llama, qwen3, qwen3_5
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_fields import Fields

Reader = Callable[[Fields], DecoderConfig]

# `model_type` to the reader of the family and the values of fields that its files may leave out. The names without
# `_text` are those of models for images and text, whose text model is described in `text_config`.
FAMILIES: dict[str, tuple[Reader, Mapping[str, Any]]] = {
    "llama": (llama.llama_config, llama.LLAMA_DEFAULTS),
    "qwen3": (qwen3.qwen3_config, qwen3.QWEN3_DEFAULTS),
    "qwen3_moe": (qwen3.qwen3_moe_config, qwen3.QWEN3_MOE_DEFAULTS),
    "qwen3_5": (qwen3_5.qwen3_5_config, qwen3_5.QWEN3_5_DEFAULTS),
    "qwen3_5_text": (qwen3_5.qwen3_5_config, qwen3_5.QWEN3_5_DEFAULTS),
    "qwen3_5_moe": (qwen3_5.qwen3_5_moe_config, qwen3_5.QWEN3_5_MOE_DEFAULTS),
    "qwen3_5_moe_text": (qwen3_5.qwen3_5_moe_config, qwen3_5.QWEN3_5_MOE_DEFAULTS),
    "gemma2": (gemma.gemma2_config, gemma.GEMMA2_DEFAULTS),
    "gemma3": (gemma.gemma3_config, gemma.GEMMA3_DEFAULTS),
    "gemma3_text": (gemma.gemma3_config, gemma.GEMMA3_DEFAULTS),
}
STEERLING_TYPES = ("steerling", "causal_diffusion")


def is_decoder(raw: Mapping[str, Any], where: str = "config.json") -> bool:
    """Whether a `config.json` describes a decoder family rather than a Steerling model.

    Raises `UserError`, naming the architecture and those that are supported, for any other model.
    """
    kind = raw.get("model_type")
    if kind in STEERLING_TYPES:
        return False
    if isinstance(kind, str) and kind in FAMILIES:
        return True
    names = raw.get("architectures")
    named = f" ({', '.join(map(str, names))[:200]})" if isinstance(names, list) and names else ""
    raise UserError(
        f"{where}: the architecture with model_type {str(kind)[:80]!r}{named} is not supported; supported are "
        f"{', '.join([*STEERLING_TYPES, *FAMILIES])}."
    )


def decoder_config(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The configuration in a `config.json` of a decoder family, with a nested `text_config` or without.

    Raises `UserError`, naming `where` and the field, for an unsupported architecture or an invalid value.
    """
    if not is_decoder(raw, where):
        raise UserError(f"{where}: this is a Steerling model, not one of {', '.join(FAMILIES)}.")
    reader, defaults = FAMILIES[raw["model_type"]]
    nested = raw.get("text_config")
    if nested is None:
        fields = Fields(raw, where, defaults, {})
    elif isinstance(nested, Mapping):
        outer = {
            name: raw[name]
            for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")
            if name in raw
        }
        fields = Fields(nested, where, defaults, outer)
    else:
        raise UserError(f"{where}: text_config is not an object of fields; restore the file.")
    try:
        return reader(fields)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None

"""Typed access to the fields of a Hugging Face `config.json`, and the fields that all decoder families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.models.decoder.config import ROPE_KINDS, Rope

_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """Fields of a published configuration.

    where: the file, for messages. defaults: the family's values of absent fields. outer: the fields around a nested
    `text_config`, which hold a few settings of the text model too.
    """

    raw: Mapping[str, Any]
    where: str
    defaults: Mapping[str, Any]
    outer: Mapping[str, Any]

    def get(self, *names: str) -> Any:
        """The first of these fields that is present, else the family's default, else None."""
        for source in (self.raw, self.outer, self.defaults):
            for name in names:
                if name in source:
                    return source[name]
        return None

    def integer(self, *names: str, optional: bool = False) -> Any:
        """An integer of at most 64 bits; None where the field is null or absent and `optional`."""
        value = self.get(*names)
        if value is None and optional:
            return None
        if type(value) is not int or not abs(value) < 1 << 63:
            raise self.error(names[0], value, "an integer")
        return value

    def number(self, *names: str, optional: bool = False) -> Any:
        """A finite number as float; None where the field is null or absent and `optional`."""
        value = self.get(*names)
        if value is None and optional:
            return None
        return self.check_number(names[0], value)

    def check_number(self, name: str, value: Any) -> float:
        """`value` as float. Raises `UserError` that names the field unless it is a finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self.error(name, value, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A boolean; false where the field is null or absent."""
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, value, "true or false")
        return bool(value)

    def text(self, *names: str) -> str:
        """A string."""
        value = self.get(*names)
        if not isinstance(value, str):
            raise self.error(names[0], value, "a string")
        return value

    def list_of(self, name: str, kind: type) -> tuple | None:
        """A list of values of one type; None where the field is null or absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.error(name, value, f"a list of {kind.__name__} values")
        return tuple(value)

    def refuse(self, name: str, reason: str) -> None:
        """Raises `UserError` if the field is set to anything but false or null."""
        if self.get(name):
            raise UserError(f"{self.where}: {name} is {_shown(self.get(name))}, which is not supported: {reason}.")

    def error(self, name: str, value: Any, kind: str) -> UserError:
        """The error for a field with a value of another type."""
        if value is None:
            return UserError(f"{self.where}: {name} is missing, but it must be {kind}; restore the file.")
        return UserError(f"{self.where}: {name} is {_shown(value)}, but it must be {kind}.")


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def shared_fields(fields: Fields) -> dict[str, Any]:
    """The arguments of `DecoderConfig` that every family reads in the same way."""
    fields.refuse("quantization_config", "use the weights that are not quantised")
    heads, width = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", optional=True)
    if head_dim is None:
        if heads < 1 or width % heads:
            raise UserError(
                f"{fields.where}: hidden_size ({width}) must be divisible by num_attention_heads ({heads})."
            )
        head_dim = width // heads
    kv_heads = fields.integer("num_key_value_heads", optional=True)
    return dict(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=width,
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        hidden_act=fields.text("hidden_activation", "hidden_act"),
        attention_bias=fields.flag("attention_bias"),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        query_scale=float(head_dim) ** -0.5,
        bos_token_id=_first(token_ids(fields, "bos_token_id")),
        eos_token_ids=token_ids(fields, "eos_token_id"),
        pad_token_id=_first(token_ids(fields, "pad_token_id")),
    )


def token_ids(fields: Fields, name: str) -> tuple[int, ...]:
    """Special ids: one id, a list of them, or none."""
    value = fields.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is int and abs(item) < 1 << 31 for item in ids):
        raise fields.error(name, value, "a token id or a list of token ids")
    return tuple(item for item in ids if item >= 0)  # some configurations have -1 for none


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def read_rope(fields: Fields, layer_type: str | None = None) -> Rope:
    """The rotary embedding: from `rope_parameters`, of one layer type where it has several, or from the older flat
    fields `rope_theta`, `rope_scaling` and `partial_rotary_factor`."""
    parameters = fields.get("rope_parameters")
    if parameters is None:
        parameters = fields.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise fields.error("rope_parameters", parameters, "an object of fields")
    nested = parameters.get(layer_type) if layer_type else None
    if isinstance(nested, Mapping):
        parameters = nested

    def number(name: str, default: Any) -> float:
        value = parameters.get(name)
        return default if value is None else fields.check_number(name, value)

    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise UserError(f"{fields.where}: rope_type is {_shown(kind)}; supported are {', '.join(ROPE_KINDS)}.")
    if kind != "default" and parameters.get("factor") is None:
        raise UserError(f"{fields.where}: rope_type is {kind!r}, which needs a factor; restore the file.")
    options: dict[str, Any] = {} if kind == "default" else {"kind": kind, "factor": number("factor", 1.0)}
    if kind == "llama3":
        length = number("original_max_position_embeddings", float(fields.integer("max_position_embeddings")))
        options |= dict(
            low_freq_factor=number("low_freq_factor", 1.0),
            high_freq_factor=number("high_freq_factor", 4.0),
            original_length=int(length),
        )
    return Rope(
        theta=number("rope_theta", fields.number("rope_theta")),
        share=number("partial_rotary_factor", fields.number("partial_rotary_factor", optional=True) or 1.0),
        **options,
    )

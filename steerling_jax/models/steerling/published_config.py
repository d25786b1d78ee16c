"""A model's configuration as the fields of either published `config.json`: nested ("package") or flat ("hub").

Source of names and layouts: the `steerling` 0.2.0 package and the Hub's Steerling-8B configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerling_jax.errors import UserError
from steerling_jax.models.steerling.config import ConceptConfig, DictionaryConfig, ModelConfig

Layout = Literal["package", "hub"]

PUBLISHED_EOT_ID = 100_283  # of the published tokenizer; an instruct model in the package layout does not state it

# Keys that Hugging Face's own tools write into a flat configuration. They do not affect the computation, and are read
# and written unchanged.
HUGGING_FACE_KEYS = frozenset(
    {
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "_name_or_path",
        "_attn_implementation",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "use_bfloat16",
        "tie_word_embeddings",
        "is_encoder_decoder",
        "is_decoder",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "use_cache",
        "tokenizer_class",
        "finetuning_task",
        "prefix",
        "sep_token_id",
        "decoder_start_token_id",
        "pruned_heads",
        "tf_legacy_loss",
        "task_specific_params",
        "tie_encoder_decoder",
        "quantization_config",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
    }
)

DICTIONARY = "dictionary"  # the field of ConceptConfig that is an extension of the published format
_CONCEPT_FIELDS = {f.name for f in dataclasses.fields(ConceptConfig)} - {DICTIONARY}
_DICTIONARY_FIELDS = {f.name for f in dataclasses.fields(DictionaryConfig)}
_MODEL_FIELDS = {f.name for f in dataclasses.fields(ModelConfig)} - {"concept"}
# The Hub layout is flat, where the concepts' `block_size` would collide with the model's.
_HUB_CONCEPT_NAMES = {("concept_block_size" if name == "block_size" else name): name for name in _CONCEPT_FIELDS}


def config_from_dict(raw: Mapping[str, Any], where: str = "config.json") -> tuple[ModelConfig, Layout, dict[str, Any]]:
    """A configuration from either published layout; returns it, its layout, and the Hub keys that are not ours.

    Raises `UserError` for an unknown field, a value of the wrong type or an invalid combination, naming `where`.
    """
    layout: Layout = "hub" if raw.get("model_type") == "steerling" else "package"
    if raw.get("model_type") not in ("steerling", "causal_diffusion"):
        raise UserError(
            f"{where}: model_type is {raw.get('model_type')!r}, not 'causal_diffusion' or 'steerling'; "
            "is this a Steerling model?"
        )
    model: dict[str, Any] = {}
    concept: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    dictionary: Any = None
    for key, value in raw.items():
        if key == "model_type" or (key == "concept" and layout == "package"):
            continue
        if key in _MODEL_FIELDS:
            model[key] = value
        elif layout == "hub" and key in _HUB_CONCEPT_NAMES:
            concept[_HUB_CONCEPT_NAMES[key]] = value
        elif key in HUGGING_FACE_KEYS:
            carried[key] = value
        else:
            raise _unknown_field(where, key, _MODEL_FIELDS | (set(_HUB_CONCEPT_NAMES) if layout == "hub" else set()))
    if layout == "package":
        concept = dict(raw.get("concept") or {})
        dictionary = concept.pop(DICTIONARY, None)
        for key in concept:
            if key not in _CONCEPT_FIELDS:
                raise _unknown_field(where, f"concept.{key}", {f"concept.{name}" for name in _CONCEPT_FIELDS})
    interpretable = model.get("interpretable", bool(concept))
    if interpretable and not concept:
        raise UserError(f"{where}: interpretable is true but the concept fields are missing; add them or set it false.")
    _check_types(model, ModelConfig, where)
    _check_types(concept, ConceptConfig, where)
    if dictionary is not None:
        concept[DICTIONARY] = _read_dictionary(dictionary, where)
    try:
        config = ModelConfig(
            **{**model, "interpretable": interpretable}, concept=ConceptConfig(**concept) if interpretable else None
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if config.eot_id is not None and not config.instruct:
        config = dataclasses.replace(config, instruct=True)
    elif config.instruct and config.eot_id is None and config.vocab_size > PUBLISHED_EOT_ID:
        config = dataclasses.replace(config, eot_id=PUBLISHED_EOT_ID)
    return config, layout, carried


def config_to_dict(config: ModelConfig, layout: Layout = "package", carried: Mapping[str, Any] | None = None) -> dict:
    """A configuration as a dict in either layout, the inverse of `config_from_dict`; the published package reads it.

    A model with a dictionary has the extension `concept.dictionary`, which the published package rejects by name. Its
    package layout only: raises `UserError` for the Hub's, whose readers might ignore what they do not know.
    """
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name != "concept"}
    if fields["eot_id"] is None:
        del fields["eot_id"]
    concept = dataclasses.asdict(config.concept) if config.concept is not None else None
    if concept is not None and concept[DICTIONARY] is None:
        del concept[DICTIONARY]
    if concept is not None and DICTIONARY in concept and layout == "hub":
        raise UserError(
            "This model's discovered concepts are a dictionary, which the Hub's layout of config.json cannot express; "
            "choose the layout 'package'."
        )
    if layout == "package":
        body = {"model_type": "causal_diffusion", **fields}
        return body if concept is None else {**body, "concept": concept}
    del fields["instruct"]  # the Hub layout expresses it by eot_id
    renamed = {hub: concept[ours] for hub, ours in _HUB_CONCEPT_NAMES.items()} if concept else {}
    return {"model_type": "steerling", **fields, **renamed, **(carried or {})}


def _read_dictionary(raw: Any, where: str) -> DictionaryConfig:
    """The extension `concept.dictionary`. Raises `UserError` unless it is an object of known fields."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: concept.dictionary is {raw!r}, but it must be an object of fields.")
    for key in raw:
        if key not in _DICTIONARY_FIELDS:
            known = {f"concept.{DICTIONARY}.{name}" for name in _DICTIONARY_FIELDS}
            raise _unknown_field(where, f"concept.{DICTIONARY}.{key}", known)
    _check_types(raw, DictionaryConfig, where)
    return DictionaryConfig(**raw)


def _unknown_field(where: str, key: str, known: set[str]) -> UserError:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"{where}: unknown field {key!r}{hint}; remove it or correct its name.")


def _check_types(values: Mapping[str, Any], owner: type, where: str) -> None:
    for spec in dataclasses.fields(owner):
        if spec.name not in values or spec.name in ("concept", DICTIONARY):
            continue
        value, kind = values[spec.name], str(spec.type)
        if value is None:
            ok = "None" in kind
        elif "bool" in kind:
            ok = isinstance(value, bool)
        elif "float" in kind:
            ok = isinstance(value, int | float) and not isinstance(value, bool)
        elif "int" in kind:
            ok = isinstance(value, int) and not isinstance(value, bool)
        else:
            ok = isinstance(value, str)
        if not ok:
            raise UserError(f"{where}: {spec.name} is {value!r}, but it must be of type {kind}.")
        # Without a limit, sizes could have so many digits that Python refuses to print them. NaN is rejected as well.
        if isinstance(value, int | float) and not abs(value) < 1 << 63:
            raise UserError(f"{where}: {spec.name} is not a finite number of at most 64 bits; correct it.")


@dataclass(frozen=True)
class PublishedExtras:
    """What a published folder holds besides the configuration, so that it can be written again unchanged.

    carried: the Hub keys that are not ours. dtype: of the tensors in the files, 'mixed' where they differ.
    """

    layout: Layout = "package"
    carried: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

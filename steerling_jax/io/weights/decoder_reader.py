"""Reads a decoder model (Llama, Qwen3, Gemma, …) from a Hugging Face folder, tensor by tensor.

Parameters have the published names: `model.layers.3.mlp.up_proj.weight` is the leaf at
`layers/3/mlp/up_proj/weight`. `models.decoder.parameters` lists what a configuration requires.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader
from steerling_jax.io.gguf.model import read_gguf_model
from steerling_jax.io.json_files import read_json_object
from steerling_jax.io.weights.parameter_tree import ParamPath, Shardings, put_leaf, resolve_shardings, sharding_of
from steerling_jax.io.weights.published_layout import Headers, find_tensors
from steerling_jax.io.weights.published_reader import ReadableTensor, load_parameter
from steerling_jax.io.weights.safetensors_format import StoredTensor, same_bytes
from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.parameters import parameter_shapes
from steerling_jax.models.decoder.published_config import decoder_config, is_decoder

# The text model's tensors have one of these prefixes; the longest that fits is removed.
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
# Of the image encoder, and of the layers that predict several tokens at once: not part of the text model. Files of old
# versions also store the frequencies of rotary embeddings.
IGNORED_PREFIXES = ("mtp.", "model.mtp.", "visual.", "vision_tower.", "multi_modal_projector.")
IGNORED_SUFFIX = ".rotary_emb.inv_freq"


def is_decoder_folder(folder: Path) -> bool:
    """Whether `config.json` in the folder describes a decoder family.

    False without a `config.json`. Raises `UserError` for a model of an unknown architecture.
    """
    path = folder / "config.json"
    return path.is_file() and is_decoder(read_json_object(path), str(path))


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The configuration in `config.json`, with all end-of-text ids that `generation_config.json` adds."""
    path = folder / "config.json"
    config = decoder_config(read_json_object(path), str(path))
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    more = read_json_object(generation).get("eos_token_id")
    ids = [item for item in (more if isinstance(more, list) else [more]) if type(item) is int and item >= 0]
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *ids))))


def read_decoder(
    folder: Path, *, dtype: str | None = None, sharding: Shardings | None = None, headers: Headers | None = None
) -> tuple[DecoderConfig, Params, str]:
    """Reads the configuration, the parameters, and the dtype in which the token embedding is stored.

    Each tensor is converted and copied directly to where it stays, as by `read_published`, which also describes the
    arguments. Raises `UserError` for a tensor that is missing, unknown or of another shape than `config.json` requires.
    """
    config = read_decoder_config(folder)
    return (config, *load_tensors(config, find_tensors(folder, headers), folder, dtype, sharding))


def read_gguf_decoder(
    path: Path, *, dtype: str | None = None, sharding: Shardings | None = None
) -> tuple[DecoderConfig, Params, str, GgufHeader]:
    """As `read_decoder`, from a GGUF file, whose header is returned as well.

    Quantised tensors are dequantised one by one; they count as stored in float32.
    """
    model = read_gguf_model(path)
    config = decoder_config(model.config, str(path))
    return (config, *load_tensors(config, model.tensors, path, dtype, sharding), model.header)


def load_tensors(
    config: DecoderConfig,
    tensors: Mapping[str, ReadableTensor],
    origin: Path,
    dtype: str | None,
    sharding: Shardings | None,
) -> tuple[Params, str]:
    """The parameters from tensors by their published names, and the dtype in which the token embedding is stored."""
    groups = match_tensors(config, tensors, origin)
    sharding = resolve_shardings(sharding, config)
    params: Params = {}
    for path, sources in groups.items():
        stacked = len(path) > 2 and path[-3] == "experts"
        target = np.dtype(sources[0].dtype if dtype is None else jnp.dtype(dtype))
        put_leaf(params, path, load_parameter(sources, stacked, target, sharding_of(sharding, path)))
    return params, groups["embed_tokens", "weight"][0].dtype.name


def match_tensors(
    config: DecoderConfig, tensors: Mapping[str, ReadableTensor], folder: Path
) -> dict[ParamPath, list[ReadableTensor]]:
    """Groups the stored tensors by parameter: one tensor each, or one for each expert of a stack of experts.

    A tied model's `lm_head.weight` is absent from the published files; a copy of the embedding is accepted. Raises
    `UserError` that names a tensor that is missing, unknown or of another shape than the config requires.
    """
    named: dict[str, ReadableTensor] = {}
    published: dict[str, str] = {}
    for full, tensor in tensors.items():
        name = text_model_name(full)
        if name is None:
            continue
        for part, piece in _split_fused(name, tensor):
            if part in named:
                raise UserError(f"{tensor.file}: tensor {full!r} is there twice, also as {published[part]!r}.")
            named[part], published[part] = piece, full
    groups: dict[ParamPath, list[ReadableTensor]] = {}
    for path, shape in parameter_shapes(config).items():
        names, expected = [".".join(path)], shape
        if len(path) > 2 and path[-3] == "experts":
            *module, projection, leaf = path
            names = [".".join([*module, str(expert), projection, leaf]) for expert in range(shape[0])]
            expected = shape[1:]
        groups[path] = [_take(named, published, name, expected, folder) for name in names]
    tied = named.pop("lm_head.weight", None)
    embedding = groups["embed_tokens", "weight"][0]
    # A GGUF file with an output projection is not tied: `tied` is None there.
    equal = isinstance(tied, StoredTensor) and isinstance(embedding, StoredTensor) and same_bytes(tied, embedding)
    if tied is not None and not equal:
        raise UserError(
            f"{tied.file}: tensor 'lm_head.weight' differs from the token embedding although config.json ties them; "
            "set tie_word_embeddings to false or remove the tensor."
        )
    for name in sorted(named):
        raise UserError(f"{named[name].file}: tensor {published[name]!r} is unknown; remove it or correct config.json.")
    return groups


def text_model_name(name: str) -> str | None:
    """A published tensor name without the prefix of the text model; None for tensors that are not part of it."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    short = name.removeprefix(prefix)
    return None if short.startswith(IGNORED_PREFIXES) or short.endswith(IGNORED_SUFFIX) else short


def _split_fused(name: str, tensor: ReadableTensor) -> Iterator[tuple[str, ReadableTensor]]:
    """The tensors of single experts that a fused one holds, under the names of unfused files; else itself.

    `experts.gate_up_proj` (E, 2F, D) has the gate's rows before those of `up`; `experts.down_proj` is (E, D, F).
    """
    module, _, projection = name.rpartition(".")
    names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(projection)
    fused = module.endswith(".experts") and len(tensor.shape) == 3
    if names is None or not fused or tensor.shape[1] % len(names) or not isinstance(tensor, StoredTensor):
        yield name, tensor
        return
    E, rows, columns = tensor.shape
    piece = replace(tensor, shape=(rows // len(names), columns))
    for expert in range(E):
        for number, part in enumerate(names):
            at = tensor.offset + (expert * len(names) + number) * piece.nbytes
            yield f"{module}.{expert}.{part}.weight", replace(piece, offset=at)


def _take(
    named: dict[str, ReadableTensor], published: Mapping[str, str], name: str, shape: tuple[int, ...], folder: Path
) -> ReadableTensor:
    tensor = named.pop(name, None)
    if tensor is None:
        raise UserError(f"{folder}: tensor {name!r} is missing; use the config.json and the weights of one model.")
    if tensor.shape != shape:
        raise UserError(
            f"{tensor.file}: tensor {published[name]!r} has shape {list(tensor.shape)} where config.json requires "
            f"{list(shape)}; use the config.json and the weights of one model."
        )
    return tensor

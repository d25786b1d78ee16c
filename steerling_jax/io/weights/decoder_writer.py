"""Writes a decoder (Llama, Qwen3, …) as a Hugging Face folder: the inverse of `decoder_reader`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError, require
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_model_json
from steerling_jax.io.weights.parameter_tree import ParamPath, get_leaf
from steerling_jax.io.weights.published_writer import copy_files, on_host, write_tensors
from steerling_jax.io.weights.safetensors_format import DTYPES, TensorToWrite
from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.config_json import decoder_config_to_dict
from steerling_jax.models.decoder.parameters import parameter_shapes


def write_decoder(
    folder: str | Path,
    config: DecoderConfig,
    params: Params,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    files: Iterable[str | Path] = (),
) -> None:
    """Writes `config.json` and the weights atomically, replacing an existing folder.

    Args:
        folder: the folder to write.
        config: the model's configuration.
        params: the parameters, on any devices.
        dtype: "float32" or "bfloat16", of the tensors; None keeps each parameter's own.
        max_shard_bytes: the size above which the weights are split into several files.
        files: files to copy into the folder, such as those of the tokenizer.

    Raises:
        UserError: the parameters do not match the configuration, a dtype cannot be written, or the disk is full.
    """
    fields = decoder_config_to_dict(config)
    embedding = get_leaf(params, ("embed_tokens", "weight"))
    fields["torch_dtype"] = dtype or (None if embedding is None else np.dtype(embedding.dtype).name)
    tensors = [
        tensor
        for path, shape in parameter_shapes(config).items()
        for tensor in _tensors(path, _checked_leaf(params, path, shape), config, dtype)
    ]
    with atomic_path(folder, folder=True) as scratch:
        copy_files(files, scratch)
        write_model_json(scratch / "config.json", fields)
        write_tensors(scratch, tensors, max_shard_bytes)


def _checked_leaf(params: Params, path: ParamPath, shape: tuple[int, ...]) -> Any:
    leaf = get_leaf(params, path)
    if leaf is None or tuple(leaf.shape) != shape:
        raise UserError(
            f"Parameter {'.'.join(path)} is missing or has another shape than this config's; give the config and the "
            "parameters of one model."
        )
    return leaf


def _tensors(path: ParamPath, leaf: Any, config: DecoderConfig, dtype: str | None) -> Iterator[TensorToWrite]:
    """The published tensors of one parameter, whose values are gathered only when the file is written: one, or one for
    each expert of a stack."""
    target = np.dtype(leaf.dtype if dtype is None else jnp.dtype(dtype))
    name = ".".join(path if path[0] == "lm_head" else ("model", *path))
    require(target in DTYPES.values(), f"Parameter {name} is {target.name}; choose float32 or bfloat16 to write it.")
    if len(path) <= 2 or path[-3] != "experts":
        yield TensorToWrite(name, target, leaf.shape, partial(on_host, leaf, None, target))
        return
    *module, projection, kind = path
    for expert in range(leaf.shape[0]):
        name = ".".join(["model", *module, str(expert), projection, kind])
        yield TensorToWrite(name, target, leaf.shape[1:], partial(on_host, leaf, expert, target))

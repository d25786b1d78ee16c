"""Writes our parameters as a published model folder (safetensors): the inverse of `published_reader`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_model_json
from steerling_jax.io.weights.parameter_tree import get_leaf
from steerling_jax.io.weights.published_layout import INDEX, SINGLE, PublishedTensor, TensorPiece, expected_tensors
from steerling_jax.io.weights.safetensors_format import DTYPES, TensorToWrite, write_file
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import Layout, config_to_dict


def write_published(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    layout: Layout = "package",
    carried: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    files: Iterable[str | Path] = (),
) -> None:
    """Writes a published folder atomically, replacing an existing one.

    Host memory holds one published tensor at a time. What `read_published` read is written back byte for byte when
    `layout` and `carried` are those it returned and `dtype` is None.

    Args:
        folder: the folder to write.
        config: the model's config.
        params: the parameters, on any devices.
        layout: the form of `config.json`.
        carried: fields of `config.json` that the model itself does not use.
        dtype: the dtype to write; None keeps each parameter's own.
        max_shard_bytes: the size above which the weights are split into several files.
        files: files to copy into the folder, such as the vocabulary.

    Raises:
        UserError: the parameters do not match the config, or the disk is full.
    """
    carried = dict(carried or {})
    for key in ("torch_dtype", "dtype"):
        if dtype is not None and key in carried:
            carried[key] = dtype
    tensors = [_tensor_to_write(expected, params, dtype) for expected in expected_tensors(config)]
    with atomic_path(folder, folder=True) as scratch:
        copy_files(files, scratch)
        write_model_json(scratch / "config.json", config_to_dict(config, layout, carried))
        write_tensors(scratch, tensors, max_shard_bytes)


def write_tensors(folder: Path, tensors: Sequence[TensorToWrite], max_shard_bytes: int) -> None:
    """Writes tensors as one safetensors file, or as several of at most `max_shard_bytes` with their index."""
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_model_json(folder / INDEX, index)


def copy_files(files: Iterable[str | Path], folder: Path) -> None:
    """Copies files into `folder` under their own names."""
    for file in files:
        shutil.copyfile(file, folder / Path(file).name)


def _tensor_to_write(expected: PublishedTensor, params: Params, dtype: str | None) -> TensorToWrite:
    """A published tensor whose values are gathered only when the file is written."""
    leaves = [_checked_leaf(piece, expected.layer is not None, params) for piece in expected.pieces]
    name = ".".join(expected.pieces[0].path)
    if dtype is None and len({leaf.dtype for leaf in leaves}) > 1:
        raise UserError(f"Parameter {name} and those published in one tensor with it differ in type; choose one type.")
    target = np.dtype(leaves[0].dtype if dtype is None else jnp.dtype(dtype))
    if target not in DTYPES.values():
        raise UserError(f"Parameter {name} is {target.name}; choose float32 or bfloat16 to write it.")

    def make() -> np.ndarray:
        rows = [on_host(leaf, expected.layer, target).reshape(-1, *expected.shape[1:]) for leaf in leaves]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    return TensorToWrite(expected.name, target, expected.shape, make)


def _checked_leaf(piece: TensorPiece, stacked: bool, params: Params) -> Any:
    leaf = get_leaf(params, piece.path)
    shape = () if leaf is None else leaf.shape[1:] if stacked else leaf.shape
    if leaf is None or tuple(shape) != piece.shape:
        raise UserError(
            f"Parameter {'.'.join(piece.path)} is missing or has another shape than this config's; give the config and "
            "the parameters of one model."
        )
    return leaf


def on_host(leaf: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One layer of a parameter (None: all of it), or one expert of a stack, in host memory."""
    # A parameter in host memory is viewed without a copy; from a device only the one layer is transferred.
    local = isinstance(leaf, np.ndarray) or next(iter(leaf.devices())).platform == "cpu"
    value = np.asarray(leaf) if local else leaf
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite weights are written as they are
        return np.asarray(value if layer is None else value[layer]).astype(dtype, copy=False)


def _split(tensors: Sequence[TensorToWrite], limit: int) -> list[list[TensorToWrite]]:
    """Groups consecutive tensors into files of at most `limit` bytes; a larger tensor gets a file of its own."""
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards

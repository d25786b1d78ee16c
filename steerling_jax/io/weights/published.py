"""The published safetensors layout to our parameters and back, tensor by tensor.

Weights stay (out, in); layers are stacked on a leading axis, and the fused projections are kept in pieces
(docs/design.md, "Parameters"). What a folder must hold is in `published_layout`, the file format in
`safetensors_format`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.weights.published_layout import (
    INDEX,
    SINGLE,
    ParamPath,
    PublishedTensor,
    TensorPiece,
    expected_tensors,
    find_tensors,
    match_tensors,
    read_config,
)
from steerling_jax.io.weights.safetensors_format import DTYPES, StoredTensor, TensorToWrite, write_file
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import Layout, PublishedExtras, config_to_dict

Params = dict[str, Any]
Sharding = jax.sharding.Sharding
# A nested dict like the parameters, or a function of a parameter's path. None where the default device will do.
Shardings = Mapping[str, Any] | Callable[[ParamPath], Sharding | None]


def read_published(
    folder: str | Path, *, dtype: str | None = None, sharding: Shardings | None = None
) -> tuple[ModelConfig, Params, PublishedExtras]:
    """Reads a published folder: config, parameters, and the rest of what it says.

    Each tensor goes straight into its place in `dtype` (None: as stored) and `sharding`, a nested dict or a function of
    the parameter's path. On top of what stays, host memory holds one tensor at a time.

    Raises `UserError` for a folder that is no model, and for damaged or foreign files.
    """
    folder = Path(folder)
    config, layout, carried = read_config(folder)
    tensors = find_tensors(folder)
    groups = match_tensors(config, tensors, folder)
    params: Params = {}
    for path, sources in groups.items():
        name = ".".join(path)
        if dtype is None and len({source.dtype for source in sources}) > 1:
            raise UserError(f"{folder}: the layers of {name} differ in type; choose one, float32 or bfloat16.")
        target = np.dtype(sources[0].dtype if dtype is None else jnp.dtype(dtype))
        put_leaf(params, path, _place(sources, path[0] == "blocks", target, sharding_of(sharding, path)))
    kinds = {tensor.dtype.name for tensor in tensors.values()}
    return config, params, PublishedExtras(layout, carried, kinds.pop() if len(kinds) == 1 else "mixed")


def sharding_of(shardings: Shardings | None, path: ParamPath) -> Sharding | None:
    """The sharding of one parameter."""
    if shardings is None or callable(shardings):
        return shardings(path) if shardings else None
    found: Any = shardings
    for key in path:
        found = found[key]
    return found


def put_leaf(tree: Params, path: ParamPath, leaf: Any) -> None:
    """Sets `leaf` at `path` of a nested dict, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _place(sources: Sequence[StoredTensor], stacked: bool, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    shape = (len(sources), *sources[0].shape) if stacked else sources[0].shape
    if sharding is None:
        whole = tuple(slice(0, n) for n in shape)
        return _block(sources, stacked, whole, dtype, None, staged=jax.default_backend() != "cpu")
    blocks = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(slice(*part.indices(n)) for part, n in zip(index or (), shape, strict=True))
        blocks.append(_block(sources, stacked, bounds, dtype, device, staged=device.platform != "cpu"))
    return jax.make_array_from_single_device_arrays(shape, sharding, blocks)


def _block(
    sources: Sequence[StoredTensor],
    stacked: bool,
    bounds: tuple[slice, ...],
    dtype: np.dtype,
    device: Any,
    *,
    staged: bool,
) -> jax.Array:
    """One device's part of a parameter. `staged`: the device has memory of its own; layers pass through one by one."""
    layers, rest = (sources[bounds[0]], bounds[1:]) if stacked else (sources, bounds)
    shape = tuple(part.stop - part.start for part in bounds)
    if not staged:
        block = _aligned_empty(shape, dtype)
        for i, source in enumerate(layers):
            _copy(block[i] if stacked else block, source, rest)
        return jax.device_put(block, device)
    piece_shape = shape[1:] if stacked else shape
    on_device = jnp.zeros(shape, dtype, device=device) if stacked else None
    for i, source in enumerate(layers):
        piece = np.empty(piece_shape, dtype)
        _copy(piece, source, rest)
        moved = jax.device_put(piece, device)
        on_device = moved if on_device is None else _set_layer(on_device, moved, i)
        on_device.block_until_ready()  # or transfers under way would hold many layers in host memory
    assert on_device is not None
    return on_device


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)


def _copy(target: np.ndarray, source: StoredTensor, bounds: tuple[slice, ...]) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are the model's own business
        np.copyto(target, source.map()[bounds], casting="unsafe")


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array at an address that XLA on CPU takes over as it is; NumPy's own alignment would cost a copy."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)


def dump_json(path: Path, value: Any) -> None:
    """Writes into a folder that is itself atomic, so that a full disk is told of the folder."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(files: Iterable[str | Path], folder: Path) -> None:
    for file in files:
        shutil.copyfile(file, folder / Path(file).name)


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
    """Writes a published folder, whole or not at all, replacing one that is there. `files` are copied along.

    `dtype` None keeps each parameter's own, so that what was read comes back byte for byte. Raises `UserError` when the
    parameters are not those of the config, or the disk is full.
    """
    carried = dict(carried or {})
    for key in ("torch_dtype", "dtype"):
        if dtype is not None and key in carried:
            carried[key] = dtype
    tensors = [_outgoing(expected, params, dtype) for expected in expected_tensors(config)]
    with atomic_path(folder, folder=True) as scratch:
        copy_files(files, scratch)
        dump_json(scratch / "config.json", config_to_dict(config, layout, carried))
        shards = _split(tensors, max_shard_bytes)
        if len(shards) == 1:
            write_file(scratch / SINGLE, shards[0])
            return
        weight_map = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_file(scratch / name, shard)
            weight_map |= {tensor.name: name for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        dump_json(scratch / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _outgoing(expected: PublishedTensor, params: Params, dtype: str | None) -> TensorToWrite:
    leaves = [_leaf_of(piece, expected.layer is not None, params) for piece in expected.pieces]
    name = ".".join(expected.pieces[0].path)
    if dtype is None and len({leaf.dtype for leaf in leaves}) > 1:
        raise UserError(f"Parameter {name} and those published in one with it differ in type; choose one.")
    target = np.dtype(leaves[0].dtype if dtype is None else jnp.dtype(dtype))
    if target not in DTYPES.values():
        raise UserError(f"Parameter {name} is {target.name}; choose float32 or bfloat16 to write it.")

    def make() -> np.ndarray:
        rows = [_on_host(leaf, expected.layer, target).reshape(-1, *expected.shape[1:]) for leaf in leaves]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    return TensorToWrite(expected.name, target, expected.shape, make)


def _leaf_of(piece: TensorPiece, stacked: bool, params: Params) -> Any:
    leaf: Any = params
    for key in piece.path:
        leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
    shape = () if leaf is None else leaf.shape[1:] if stacked else leaf.shape
    if leaf is None or tuple(shape) != piece.shape:
        raise UserError(
            f"Parameter {'.'.join(piece.path)} is missing or misshapen for this config; are they one model's?"
        )
    return leaf


def _on_host(leaf: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    # In host memory a layer is a view; from a device only the one layer travels.
    local = isinstance(leaf, np.ndarray) or next(iter(leaf.devices())).platform == "cpu"
    value = np.asarray(leaf) if local else leaf
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(value if layer is None else value[layer]).astype(dtype, copy=False)


def _split(tensors: Sequence[TensorToWrite], limit: int) -> list[list[TensorToWrite]]:
    """Consecutive tensors into shards of at most `limit` bytes; a larger tensor gets one to itself."""
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards

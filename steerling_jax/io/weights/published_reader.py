"""Reads a published model folder (safetensors) into our parameters, tensor by tensor.

Weights stay (out, in); layers are stacked on a leading axis, and fused projections are split into pieces
(docs/design/parameters.md). `published_layout` lists what a folder must hold, `safetensors_format` reads the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.weights.parameter_tree import Sharding, Shardings, put_leaf, resolve_shardings, sharding_of
from steerling_jax.io.weights.published_layout import Headers, find_tensors, match_tensors, read_config
from steerling_jax.io.weights.remote_tensors import RemoteTensor, by_rows, fetch
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import PublishedExtras


def read_published(
    folder: str | Path,
    *,
    dtype: str | None = None,
    sharding: Shardings | None = None,
    headers: Headers | None = None,
) -> tuple[ModelConfig, Params, PublishedExtras]:
    """Reads a published folder: its config, its parameters, and what `config.json` says beyond the config.

    Each tensor is converted and copied directly to where it stays. Beyond the parameters themselves, host memory holds
    one tensor (with a sharding, one shard of a tensor) at a time.

    Args:
        folder: a folder with `config.json` and `model.safetensors`, or with shards and their index.
        dtype: the dtype of the parameters; None keeps the stored one.
        sharding: the sharding of each parameter, a nested dict or a function of the parameter's path, or the mesh on
            which the family's table shards them; None places all on the default device.
        headers: where the weight files are, if not in `folder` (`find_tensors`).

    Raises:
        UserError: the folder is not a model, or a file is damaged or belongs to another model.
    """
    folder = Path(folder)
    config, layout, carried = read_config(folder)
    sharding = resolve_shardings(sharding, config)
    tensors = find_tensors(folder, headers)
    groups = match_tensors(config, tensors, folder)
    params: Params = {}
    for path, sources in groups.items():
        name = ".".join(path)
        if dtype is None and len({source.dtype for source in sources}) > 1:
            raise UserError(f"{folder}: the layers of {name} differ in type; choose one, float32 or bfloat16.")
        target = np.dtype(sources[0].dtype if dtype is None else jnp.dtype(dtype))
        put_leaf(params, path, load_parameter(sources, path[0] == "blocks", target, sharding_of(sharding, path)))
    dtypes = {tensor.dtype.name for tensor in tensors.values()}
    return config, params, PublishedExtras(layout, carried, dtypes.pop() if len(dtypes) == 1 else "mixed")


class ReadableTensor(Protocol):
    """A tensor in a file of any format; `part` gives its values within bounds, with this shape and dtype."""

    @property
    def file(self) -> Any: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def part(self, bounds: tuple[slice, ...]) -> np.ndarray: ...


def load_parameter(
    sources: Sequence[ReadableTensor], stacked: bool, dtype: np.dtype, sharding: Sharding | None
) -> jax.Array:
    """One parameter on its device or devices; `stacked`: the sources are its layers, or its experts."""
    shape = (len(sources), *sources[0].shape) if stacked else sources[0].shape
    if sharding is None:
        whole = tuple(slice(0, n) for n in shape)
        sources = fetch(sources, stacked, [whole])
        return load_shard(sources, stacked, whole, dtype, None, staged=jax.default_backend() != "cpu")
    read_as = by_rows(sharding, shape) if isinstance(sources[0], RemoteTensor) else sharding
    # Only the shards of this process's devices: a process never reads the others' parts of the files.
    parts = {
        device: tuple(slice(*part.indices(n)) for part, n in zip(index or (), shape, strict=True))
        for device, index in read_as.addressable_devices_indices_map(shape).items()
    }
    sources = fetch(sources, stacked, list(parts.values()))
    shards = [
        load_shard(sources, stacked, bounds, dtype, device, staged=device.platform != "cpu")
        for device, bounds in parts.items()
    ]
    array = jax.make_array_from_single_device_arrays(shape, read_as, shards)
    return array if read_as is sharding else _move(array, sharding)


def load_shard(
    sources: Sequence[ReadableTensor],
    stacked: bool,
    bounds: tuple[slice, ...],
    dtype: np.dtype,
    device: Any,
    *,
    staged: bool,
) -> jax.Array:
    """The part of a parameter within `bounds`, on one device.

    `staged`: the device has memory of its own, so layers are sent one by one through a small host buffer. On a CPU the
    array in host memory is the parameter itself.
    """
    layers, rest = (sources[bounds[0]], bounds[1:]) if stacked else (sources, bounds)
    shape = tuple(part.stop - part.start for part in bounds)
    if not staged:
        shard = _aligned_empty(shape, dtype)
        for i, source in enumerate(layers):
            _copy(shard[i] if stacked else shard, source, rest)
        return jax.device_put(shard, device)
    piece_shape = shape[1:] if stacked else shape
    on_device = jnp.zeros(shape, dtype, device=device) if stacked else None
    for i, source in enumerate(layers):
        piece = np.empty(piece_shape, dtype)
        _copy(piece, source, rest)
        moved = jax.device_put(piece, device)
        on_device = moved if on_device is None else _set_layer(on_device, moved, i)
        on_device.block_until_ready()  # otherwise transfers in flight would hold many layers in host memory
    assert on_device is not None
    return on_device


def _move(array: jax.Array, sharding: Sharding) -> jax.Array:
    """The array with another sharding; the devices exchange their parts, also between processes."""
    moved = jax.jit(_unchanged, out_shardings=sharding)(array)
    return moved.block_until_ready()  # one parameter at a time, or the exchanged parts of many would be in memory


def _unchanged(array: jax.Array) -> jax.Array:
    """`array`; one function, so that JAX compiles once for each shape and pair of shardings."""
    return array


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    """Sets layer `i`. The stack is donated, so that the device never holds it twice."""
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)


def _copy(target: np.ndarray, source: ReadableTensor, bounds: tuple[slice, ...]) -> None:
    """Copies and converts the part of a stored tensor. Its pages are mapped during this call only: they belong to the
    page cache, and the kernel may drop them as soon as the mapping is gone."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite weights are read as they are stored
        np.copyto(target, source.part(bounds), casting="unsafe")


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array aligned to 64 bytes.

    XLA on CPU uses such an array's memory as its own buffer; with NumPy's alignment of 16 bytes it would copy it, and
    loading would take twice the memory of the parameter.
    """
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)

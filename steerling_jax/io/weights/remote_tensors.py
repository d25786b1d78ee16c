"""Tensors of safetensors files in a bucket: headers and rows are read by range requests, and no file is downloaded.

A range of rows is one contiguous range of bytes. A range of columns is not, and would need a request for each row. So a
process reads whole rows, and where a parameter is sharded along a later axis, each process of several reads an equal
share of the rows and the devices exchange their parts (`by_rows`): together they read each byte once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.weights.parameter_tree import Sharding
from steerling_jax.io.weights.safetensors_format import StoredTensor, damaged, parse_header

_REQUESTS = 16  # at the same time: one request gets a fraction of a host's bandwidth
_PIECE = 1 << 25  # bytes of a request at most


@dataclass(frozen=True)
class RemoteFile:
    """A file in a bucket."""

    folder: StoragePath
    name: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    def read(self, start: int, end: int) -> bytes:
        """The bytes `start` to `end`. Raises `UserError` if the file is missing."""
        content = self.folder.read(self.name, start, end)
        if content is None:
            raise UserError(f"{self} is missing; copy the model into the bucket again.")
        return content


class RemoteTensor(StoredTensor):
    """A tensor in a `RemoteFile`."""

    def map(self) -> np.ndarray:
        """The whole tensor, read from the bucket."""
        return self.raw(0, self.nbytes).view(self.dtype).reshape(self.shape)

    def raw(self, start: int, end: int) -> np.ndarray:
        """The bytes `start` to `end` of the tensor's data, uint8. Raises `UserError` if the file is too short."""
        content = np.frombuffer(self.file.read(self.offset + start, self.offset + end), np.uint8)
        if len(content) != end - start:
            raise damaged(self.file, "it has become shorter")
        return content


@dataclass(frozen=True)
class FetchedTensor:
    """A tensor of which some ranges of rows are in memory, each an array (rows, …) by its first and last row + 1."""

    file: RemoteFile
    dtype: np.dtype
    shape: tuple[int, ...]
    rows: dict[tuple[int, int], np.ndarray]

    def part(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """The values within `bounds`, whose rows are one of the ranges in memory."""
        return self.rows[bounds[0].start, bounds[0].stop][(slice(None), *bounds[1:])]


def remote_header(folder: StoragePath, name: str) -> dict[str, StoredTensor] | None:
    """The tensors of a safetensors file in a bucket; None if there is no such file. Raises `UserError` as `read_header`
    does."""
    size = folder.size(name)
    if size is None:
        return None
    file = RemoteFile(folder, name)
    return parse_header(file, size, file.read, RemoteTensor)


def by_rows(sharding: Sharding, shape: tuple[int, ...]) -> Sharding:
    """The sharding in which several processes read a parameter that has this one.

    It is another one only where a process would read rows for the sake of a part of their columns.
    """
    if jax.process_count() == 1 or not isinstance(sharding, NamedSharding):
        return sharding
    later_axes = any(axis is not None for axis in sharding.spec[1:])
    if not later_axes or shape[0] % sharding.mesh.size:
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))


def fetch(sources: Sequence[Any], stacked: bool, parts: Sequence[tuple[slice, ...]]) -> Sequence[Any]:
    """`sources`, of a parameter of which `parts` are needed, with those parts in memory if they are in a bucket.

    Several devices may need the same rows, or other columns of the same rows: each range is read once. `stacked`: the
    sources are the parameter's layers, or its experts, along its first axis.
    """
    if not isinstance(sources[0], RemoteTensor):
        return sources
    fetched = [FetchedTensor(source.file, source.dtype, source.shape, {}) for source in sources]
    requests = []
    for part in parts:
        chosen, rows = (part[0], part[1]) if stacked else (slice(0, 1), part[0])
        for source, target in zip(sources[chosen], fetched[chosen], strict=True):
            if (rows.start, rows.stop) not in target.rows:
                array, reads = _rows_to_read(source, rows.start, rows.stop)
                target.rows[rows.start, rows.stop] = array
                requests += reads
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda read: read(), requests))
    return fetched


def _rows_to_read(source: RemoteTensor, start: int, stop: int) -> tuple[np.ndarray, list[Any]]:
    """An array for rows of a tensor, and the calls that fill it."""
    array = np.empty((stop - start, *source.shape[1:]), source.dtype)
    row = array[:1].nbytes
    data = array.reshape(-1).view(np.uint8)

    def fill(at: int) -> None:
        end = min(at + _PIECE, len(data))
        data[at:end] = source.raw(start * row + at, start * row + end)

    return array, [partial(fill, at) for at in range(0, len(data), _PIECE)]

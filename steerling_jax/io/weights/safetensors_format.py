"""The safetensors file format: headers are validated, tensors memory-mapped and written one by one.

The `safetensors` package is not used, because its NumPy interface lacks bfloat16 in some versions and writes only files
whose tensors are all in memory. Format: 8 bytes of header length (little endian), a JSON header
`{name: {dtype, shape, data_offsets}}`, then the tensors' data without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.text_files import load_json

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the reference implementation's limit
_MAX_AXES = 64  # of an array in NumPy
_COMPARE_BYTES = 1 << 24  # compared at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `offset` is in bytes from the start of `file`, which is a path, or a file in a bucket in the
    subclass `RemoteTensor`."""

    file: Any
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The tensor, memory-mapped and read-only.

        Pages are read when they are accessed, and are not counted as the process's memory once the array is freed. So
        a model larger than the free memory can be converted or sharded tensor by tensor.
        """
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise damaged(self.file, "it has become shorter") from error

    def part(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """The values within `bounds`, a slice for each axis."""
        return self.map()[bounds]

    def raw(self, start: int, end: int) -> np.ndarray:
        """The bytes `start` to `end` of the tensor's data, uint8."""
        return np.memmap(self.file, np.uint8, "r", self.offset + start, (end - start,))


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose values `make` computes when it is written, so that one tensor is in memory at a time."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def damaged(file: Any, detail: str) -> UserError:
    """The error for a file that is not what its header says."""
    return UserError(f"{file} is truncated or corrupt ({detail}); copy or download it again.")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name; the data is not read.

    A truncated download, an HTML error page or a corrupted header is found here, before any tensor is used. Raises
    `UserError` unless the header describes the file exactly.
    """

    def read(start: int, end: int) -> bytes:
        file.seek(start)
        return file.read(end - start)

    try:
        with path.open("rb") as file:
            return parse_header(path, path.stat().st_size, read)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check that the file exists and is readable.") from error


def parse_header(
    path: Any, size: int, read: Callable[[int, int], bytes], kind: type[StoredTensor] = StoredTensor
) -> dict[str, StoredTensor]:
    """As `read_header`, for a file of `size` bytes of which `read(start, end)` gives the bytes; `kind`: of tensors."""
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise damaged(path, f"{size} bytes are too few for a header")
    (length,) = struct.unpack("<Q", prefix)
    # Checked before reading: a damaged length could ask for exabytes.
    if length > min(size - 8, _MAX_HEADER):
        raise damaged(path, f"its header claims {length} bytes of {size}")
    start = 8 + length
    try:
        header = load_json(read(8, start))
    except ValueError as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, fields, start, kind) for name, fields in header.items()}
    _check_layout(path, tensors, start, size)
    return tensors


def _entry(path: Any, name: str, fields: Any, start: int, of: type[StoredTensor]) -> StoredTensor:
    """A tensor from its header entry; `start`: where the file's data begins."""
    try:
        kind, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        # `true` is valid JSON and an int in Python. The bounds are those of NumPy; without them, a size could have
        # thousands of digits, which Python refuses to print.
        numbers = (*shape, begin, end)
        valid = len(shape) <= _MAX_AXES and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its entry for tensor {name!r} is malformed") from error
    if not valid:
        raise damaged(path, f"its entry for tensor {name!r} is malformed")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UserError(f"{path}: tensor {name!r} has type {kind!r}; convert it to one of {', '.join(DTYPES)}.")
    tensor = of(path, DTYPES[kind], tuple(shape), start + begin)
    if end - begin != tensor.nbytes:
        raise damaged(path, f"tensor {name!r} has {end - begin} bytes where its shape needs {tensor.nbytes}")
    return tensor


def _check_layout(path: Any, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    """Raises `UserError` unless the data consists of exactly the tensors, one after another.

    The reference implementation requires it too: gaps could hide data, and overlapping tensors could make a small file
    claim an enormous model.
    """
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset + tensor.nbytes > size:
            raise damaged(path, f"tensor {name!r} ends after byte {size}, the end of the file")
        if tensor.offset != at:
            raise damaged(path, f"there is a gap or an overlap before tensor {name!r}")
        at += tensor.nbytes
    if at != size:
        raise damaged(path, f"{size - at} bytes belong to no tensor")


def same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors are equal bit for bit, so that a NaN equals itself."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    starts = range(0, a.nbytes, _COMPARE_BYTES)
    spans = [(start, min(start + _COMPARE_BYTES, a.nbytes)) for start in starts]
    return all(np.array_equal(a.raw(*span), b.raw(*span)) for span in spans)


def write_file(path: Path, tensors: Sequence[TensorToWrite]) -> None:
    """Writes a file, with one tensor in memory at a time. Raises `OSError`, for example when the disk is full."""
    # Wider dtypes first, so that each tensor is aligned to its element size (with the header padded to 8 bytes).
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers rejects files without it
    at = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            value = np.ascontiguousarray(tensor.make(), dtype=tensor.dtype)
            assert value.shape == tensor.shape, (tensor.name, value.shape, tensor.shape)
            file.write(value.reshape(-1).view(np.uint8).data)

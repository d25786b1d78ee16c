"""The safetensors file format: headers checked before anything is believed, tensors mapped and written one by one.

Read and written here rather than through the `safetensors` package, whose NumPy side lacks bfloat16 in some versions
and can only write a file whose tensors are all in memory. Format: 8 bytes of header length (little endian), a JSON
header `{name: {dtype, shape, data_offsets}}`, then the data without holes.
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

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the reference implementation's limit
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` is in bytes from the start of `file`."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The tensor, read-only and mapped: pages count against memory only while the result is alive."""
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise damaged(self.file, "it has become shorter") from error


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is made only when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def damaged(path: Path, detail: str) -> UserError:
    return UserError(f"{path} is truncated or corrupt ({detail}); copy or download it again.")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name. Raises `UserError` where the header does not describe the file exactly."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise damaged(path, f"{size} bytes are too few for a header")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER):
                raise damaged(path, f"its header claims {length} bytes of {size}")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check that the file is there and readable.") from error
    try:
        header = json.loads(text)
    except ValueError as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _entry(path, name, fields, start) for name, fields in header.items()}
    _check_layout(path, tensors, start, size)
    return tensors


def _entry(path: Path, name: str, fields: Any, start: int) -> StoredTensor:
    try:
        kind, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its entry for tensor {name!r} is malformed") from error
    if not whole:
        raise damaged(path, f"its entry for tensor {name!r} is malformed")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UserError(f"{path}: tensor {name!r} has type {kind!r}; convert it to one of {', '.join(DTYPES)}.")
    tensor = StoredTensor(path, DTYPES[kind], tuple(shape), start + begin)
    if end - begin != tensor.nbytes:
        raise damaged(path, f"tensor {name!r} has {end - begin} bytes where its shape needs {tensor.nbytes}")
    return tensor


def _check_layout(path: Path, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    """The data must be exactly the tensors one after another, as the reference implementation demands."""
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
    """Whether two stored tensors are equal bit for bit (so a NaN equals itself)."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    raw_a, raw_b = (np.memmap(t.file, np.uint8, "r", t.offset, (t.nbytes,)) for t in (a, b))
    spans = range(0, a.nbytes, _COPY_BYTES)
    return all(np.array_equal(raw_a[i : i + _COPY_BYTES], raw_b[i : i + _COPY_BYTES]) for i in spans)


def write_file(path: Path, tensors: Sequence[TensorToWrite]) -> None:
    """Writes a file, one tensor in memory at a time. Raises `OSError`, as on a full disk."""
    # Wider types first keep every tensor aligned to its element.
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
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

"""The header of a GGUF file: metadata and the list of tensors, validated before anything is allocated.

The reader of the `gguf` package makes several NumPy objects for each text of a vocabulary (two seconds for 49,152
pieces, 0.1 s here) and follows the lengths in the file without bounds, so that a damaged file can keep it busy without
end. So the header is read here; the types, the sizes of quantised blocks and their arithmetic come from the package.

Format, version 2 and 3, little endian: magic, version (uint32), number of tensors and of metadata fields (uint64), the
fields, the tensors' names, dimensions (fastest first), types and offsets, padding, data. Source: the GGUF specification
of ggml.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_AXES = 4  # of a tensor in ggml
_STRING, _ARRAY = 8, 9
# NumPy's types by the number of the metadata type; text and arrays are handled apart.
_SCALARS = {
    number: np.dtype(code).newbyteorder("<")
    for number, code in {
        0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8",
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the file: its shape (slowest axis first), type number and offset in bytes from the file's start."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """metadata: values by key; numbers, text, NumPy arrays and lists of text. tensors: by their names in the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def damaged(path: Path, detail: str) -> UserError:
    """The error for a file that breaks the format."""
    return UserError(f"{path} is truncated or corrupt ({detail}); copy or download it again.")


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header of a GGUF file; the tensors' data is not read.

    Raises `UserError` if the file cannot be read, is no GGUF file of a known version, or is truncated.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise UserError(f"{path} is not a GGUF file; give a file that begins with the letters GGUF.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Cursor(path, content).header()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check that the file exists and is readable.") from error


class _Cursor:
    """Reads values from a mapped file, one after another; each length is compared with what is left of the file."""

    def __init__(self, path: Path, content: mmap.mmap):
        self._path, self._content, self._at = path, content, len(MAGIC)

    def header(self) -> GgufHeader:
        version = self._number("<I")
        if version not in _VERSIONS:
            big_endian = version.to_bytes(4, "little") in {v.to_bytes(4, "big") for v in _VERSIONS}
            reason = "big-endian" if big_endian else f"version {version} of the format"
            raise UserError(f"{self._path} is {reason}, which is not read: convert it to GGUF 3, little-endian.")
        tensor_count, field_count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._fits(field_count, 12)):
            key = self._text()
            if key in metadata:
                raise damaged(self._path, f"the field {key!r} is there twice")
            metadata[key] = self._value(self._number("<I"))
        infos = [self._tensor() for _ in range(self._fits(tensor_count, 24))]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise damaged(self._path, f"general.alignment is {alignment!r}, no power of two")
        start = -(-self._at // alignment) * alignment
        tensors = {name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in infos}
        if len(tensors) != len(infos):
            raise damaged(self._path, "two tensors have the same name")
        return GgufHeader(self._path, metadata, tensors)

    def _fits(self, count: int, size: int) -> int:
        """`count`, checked: so many entries of at least `size` bytes must fit into the rest of the file."""
        left = len(self._content) - self._at
        if count * size > left:
            raise damaged(self._path, f"its header needs {count * size} bytes where {left} are left")
        return count

    def _bytes(self, size: int) -> bytes:
        self._fits(size, 1)
        self._at += size
        return self._content[self._at - size : self._at]

    def _number(self, code: str) -> int:
        return struct.unpack(code, self._bytes(struct.calcsize(code)))[0]

    def _text(self) -> str:
        try:
            return self._bytes(self._number("<Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self._path, "a text in its header is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0].item()
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            return [self._text() for _ in range(self._fits(count, 8))]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> np.ndarray:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise damaged(self._path, f"its header holds a value of the unknown type {kind}")
        return np.frombuffer(self._bytes(self._fits(count, dtype.itemsize) * dtype.itemsize), dtype)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._text(), self._number("<I")
        if axes > _MAX_AXES:
            raise damaged(self._path, f"tensor {name!r} has {axes} axes")
        shape = tuple(reversed([self._number("<Q") for _ in range(axes)]))
        # Beyond this bound a size is damaged in any case, and products of sizes could have thousands of digits.
        if math.prod(shape) >= 1 << 48:
            raise damaged(self._path, f"tensor {name!r} has the shape {list(shape)}")
        return name, shape, self._number("<I"), self._number("<Q")

"""Torch's tensor files (`.pt`), read and written without torch, and read without running anything in them.

Such a file is a zip archive, uncompressed: `NAME/data.pkl` is a pickle that describes the tensors, `NAME/data/KEY`
holds the bytes of each storage. A pickle is a program. This reader resolves no name but the few that describe tensors
and answers all others with an error, so a file with code in it is refused and nothing runs.

Source of the layout: files written by torch 2 (`torch.save`).
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from steerling_jax.errors import UserError, error_summary

_MAX_PICKLE = 1 << 20  # bytes; the description of an autoencoder has some hundred
_MAX_AXES = 8
_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_ALIGNMENT = 64  # of each storage in the file, as torch has it


class _Sealed:
    """What a pickle may hold and not change: its opcode BUILD would set any attribute of an object after the checks."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise TypeError("a tensor's description cannot be changed")


@dataclass(frozen=True)
class _Storage(_Sealed):
    """The bytes of one or several tensors: `count` values of `dtype` from `offset` bytes into the file on."""

    dtype: np.dtype
    count: int
    offset: int


@dataclass(frozen=True)
class _Tensor(_Sealed):
    """A view of a storage; offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def map(self, path: Path) -> np.ndarray:
        """The values, memory-mapped and read-only."""
        dtype = self.storage.dtype
        if 0 in self.shape or self.storage.count == 0:
            return np.zeros(self.shape, dtype)
        flat = np.memmap(path, dtype, "r", self.storage.offset, (self.storage.count,))
        apart = tuple(stride * dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, apart, writeable=False)


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a torch file, by name, memory-mapped and read-only.

    Raises `UserError` for a file that is damaged, holds anything but a dict of tensors, or describes a tensor beyond
    its storage's bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description, storages = _open(path, archive)
            found = _Unpickler(path, description, storages).load()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except zipfile.BadZipFile as error:
        raise _refusal(path, "is no torch file in the zip format of torch 1.6 and later") from error
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise _refusal(path, f"has a damaged description ({error_summary(error)})") from error
    if not isinstance(found, dict):
        raise _refusal(path, f"holds a {type(found).__name__} and not a dict of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _refusal(path, f"holds {str(name)[:80]!r}, which is not a tensor")
    return {name: tensor.map(path) for name, tensor in found.items()}


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}; nothing in it was run. Get the file again, or from another source.")


def _open(path: Path, archive: zipfile.ZipFile) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The pickle of a file, and of each storage, by key, its first byte in the file and its size in bytes."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise _refusal(path, f"holds {len(names)} descriptions of tensors and not one")
    root = names[0].removesuffix("data.pkl")
    size = path.stat().st_size
    storages = {}
    for entry in archive.infolist():
        # Compressed entries do not occur, and could blow up to any size.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _refusal(path, f"has the compressed entry {entry.filename[:80]!r}")
        if entry.filename.startswith(f"{root}data/"):
            start = _first_byte(path, entry)
            if start + entry.file_size > size:
                raise _refusal(path, "is truncated")
            storages[entry.filename.removeprefix(f"{root}data/")] = (start, entry.file_size)
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise _refusal(path, "was written by a big-endian machine")
    if archive.getinfo(names[0]).file_size > _MAX_PICKLE:
        raise _refusal(path, f"has a description of more than {_MAX_PICKLE} bytes")
    return archive.read(names[0]), storages


def _first_byte(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begins: after its local header, whose length the archive's directory does not say."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise _refusal(path, "is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + name + extra


class _Unpickler(pickle.Unpickler):
    """Runs the pickle of a torch file with four names and the types of storages; others are refused."""

    def __init__(self, path: Path, description: bytes, storages: dict[str, tuple[int, int]]):
        super().__init__(io.BytesIO(description))
        self._path, self._storages = path, storages

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name == "torch._utils._rebuild_tensor_v2":
            return self._tensor
        if name == "torch._utils._rebuild_parameter":
            return _parameter
        if name == "collections.OrderedDict":
            return OrderedDict
        if module_name == "torch" and global_name in _STORAGES:
            return global_name  # a string, which a pickle can neither call nor change
        raise _refusal(self._path, f"asks for {name[:120]!r}, which tensors do not need")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(count)) if kind in _STORAGES and key in self._storages:
                (start, size), dtype = self._storages[key], _STORAGES[kind]
                if 0 <= count <= size // dtype.itemsize:
                    return _Storage(dtype, count, start)
        raise _refusal(self._path, "describes a storage that it does not hold")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        """A view of a storage. Its size is bounded by the storage's: with a stride of 0, a file of a few bytes could
        describe a tensor of any size."""
        numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            self._outside()
        if len(shape) != len(strides) or len(shape) > _MAX_AXES or math.prod(shape) > storage.count:
            self._outside()
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.count:
            self._outside()
        return _Tensor(storage, offset, shape, strides)

    def _outside(self) -> NoReturn:
        raise _refusal(self._path, "describes a tensor outside its storage")


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def write_torch_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as `torch.save` writes a dict of them. Raises `OSError`, for example when the disk is full."""
    root = path.name.removesuffix(".pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, f"{root}/data.pkl", _describe(tensors))
        _write_entry(archive, f"{root}/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            _write_entry(archive, f"{root}/data/{key}", np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        _write_entry(archive, f"{root}/version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    """Adds an entry whose data begins at a multiple of 64 bytes, so that it can be memory-mapped as any dtype."""
    entry = zipfile.ZipInfo(name)
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode()) + 4
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # the tag that torch uses for its padding
    archive.writestr(entry, content)


def _describe(tensors: dict[str, np.ndarray]) -> bytes:
    """The pickle (protocol 2) of a dict of tensors. Written by hand: Python's pickler imports what it names, here
    torch."""
    out = [b"\x80\x02}("]
    for key, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(stride // tensor.itemsize for stride in np.empty(tensor.shape, tensor.dtype).strides)
        storage = [_text("storage"), f"ctorch\n{_STORAGE_NAMES[tensor.dtype]}\n".encode(), _text(str(key))]
        storage += [_text("cpu"), _integer(tensor.size)]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", _tuple(*storage), b"Q", _integer(0)]
        out += [_tuple(*map(_integer, tensor.shape)), _tuple(*map(_integer, strides))]
        out += [b"\x89ccollections\nOrderedDict\n)R", b"tR"]
    return b"".join([*out, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"\x8a" + bytes([8]) + struct.pack("<q", value)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"

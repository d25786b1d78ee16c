"""The tensors of a GGUF file as arrays: memory-mapped, dequantised by the `gguf` package when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader, TensorInfo, damaged

Convert = Callable[[np.ndarray], np.ndarray]

# Types whose values are stored as they are. The others are dequantised to float32.
_PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_QUANTISED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4"
READABLE = (*_PLAIN, *_QUANTISED.split())


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file, read like a `StoredTensor` of safetensors.

    dtype: of what `map` returns: the stored one, float32 for quantised tensors. shape: slowest axis first. type: the
    name of the quantisation, such as "Q4_1". convert: applied to the values, for example to restore the order of rows.
    stored_shape: before it.
    """

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    type: str
    offset: int
    stored_bytes: int
    convert: Convert | None = None
    stored_shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of the array that `map` returns, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The tensor's values. Nothing is kept: a quantised tensor is dequantised at each call."""
        from gguf import GGMLQuantizationType, quants

        try:
            raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.stored_bytes,))
        except (OSError, ValueError) as error:
            raise damaged(self.file, "it has become shorter") from error
        if self.type in _PLAIN:
            values = raw.view(self.dtype).reshape(self.stored_shape)
        else:
            rows = raw.reshape(*self.stored_shape[:-1], -1)
            values = quants.dequantize(rows, GGMLQuantizationType[self.type]).reshape(self.stored_shape)
        return values if self.convert is None else self.convert(values)

    def part(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """The values within `bounds`, a slice for each axis."""
        return self.map()[bounds]

    def converted(self, convert: Convert, shape: tuple[int, ...] | None = None) -> GgufTensor:
        """The tensor with `convert` applied to its values, which keeps the dtype; shape: the result's, or None."""
        return replace(self, convert=convert, shape=self.shape if shape is None else shape, stored_shape=self.shape)

    def row(self, index: int) -> GgufTensor:
        """The part at `index` of the slowest axis, for example one expert."""
        return replace(self.rows(index, 1), shape=self.shape[1:], stored_shape=self.shape[1:])

    def rows(self, start: int, count: int) -> GgufTensor:
        """`count` parts of the slowest axis, from `start` on."""
        part, shape = self.stored_bytes // self.shape[0], (count, *self.shape[1:])
        offset = self.offset + start * part
        return replace(self, shape=shape, stored_shape=shape, offset=offset, stored_bytes=count * part)


def gguf_tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """The tensors of a file by their names in it.

    Raises `UserError` for a quantisation that is not read, and for a tensor that does not fit into the file.
    """
    size = header.path.stat().st_size
    tensors = {name: _tensor(header.path, name, info) for name, info in header.tensors.items()}
    for tensor in tensors.values():
        if tensor.offset + tensor.stored_bytes > size:
            raise damaged(header.path, f"tensor {tensor.name!r} ends after byte {size}, the end of the file")
    return tensors


def _tensor(path: Path, name: str, info: TensorInfo) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(info.type).name if info.type in set(GGMLQuantizationType) else f"type {info.type}"
    if kind not in READABLE:
        raise UserError(
            f"{path}: tensor {name!r} is quantised as {kind}, which is not read; "
            f"use a file with one of {', '.join(READABLE)}."
        )
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if not info.shape or info.shape[-1] % block:
        raise damaged(path, f"the rows of tensor {name!r} are not made of blocks of {block} values")
    stored = math.prod(info.shape) // block * block_bytes
    dtype = _PLAIN.get(kind, np.dtype(np.float32))
    return GgufTensor(path, name, dtype, info.shape, kind, info.offset, stored, stored_shape=info.shape)

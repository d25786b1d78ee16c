"""How each format lays out the arrays of an autoencoder: their names, order of axes, and which may be absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.errors import UserError

Axes = Literal["DS", "SD", "S", "D", "DD", "1"]

_OWN_AXES: dict[str, Axes] = {"W_enc": "DS", "W_dec": "SD", "b_enc": "S", "b_dec": "D", "threshold": "S",
                              "W_skip": "DD"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An array of a file: its name there, our field, and the order of its axes there (D width, S latents, 1 scalar).

    transposed: for a square array, whose axes do not tell.
    """

    name: str
    field: str
    axes: Axes
    transposed: bool = False


ENCODER = (Row("W_enc", "W_enc", "DS"), Row("W_dec", "W_dec", "SD"), Row("b_enc", "b_enc", "S"),
           Row("b_dec", "b_dec", "D"))  # fmt: skip
THRESHOLD = Row("threshold", "threshold", "S")
GEMMA_SCOPE = (*ENCODER, THRESHOLD)
GEMMA_SCOPE_2 = tuple(Row(row.name.lower(), row.field, row.axes) for row in GEMMA_SCOPE)
QWEN_SCOPE = (Row("W_enc", "W_enc", "SD"), Row("W_dec", "W_dec", "DS"), *ENCODER[2:])
SPARSIFY = (Row("encoder.weight", "W_enc", "SD"), Row("W_dec", "W_dec", "SD"), Row("encoder.bias", "b_enc", "S"),
            Row("b_dec", "b_dec", "D"))  # fmt: skip
SKIP = Row("W_skip", "W_skip", "DD", transposed=True)
LINEAR = (Row("encoder.weight", "W_enc", "SD"), Row("decoder.weight", "W_dec", "DS"), Row("encoder.bias", "b_enc", "S"))


def to_weights(
    rows: tuple[Row, ...],
    tensors: Mapping[str, np.ndarray],
    settings: Settings,
    name: str,
    ignored: tuple[str, ...] = (),
) -> Weights:
    """The weights of a file's tensors, in float32.

    ignored: tensors that the format has and the weights do not. Raises `UserError`, beginning with `name`, for a
    missing, extra or misshapen tensor, for values that are not finite, and for a k that does not fit.
    """
    for row in rows:
        if row.name not in tensors:
            raise UserError(f"{name} has no tensor {row.name!r}; is it complete, and of the right format?")
    if extra := sorted(set(tensors) - {row.name for row in rows} - set(ignored)):
        raise UserError(f"{name} has the tensor {extra[0]!r}, which its format does not have; is it another format?")
    first = next(row for row in rows if row.field == "W_enc")
    if tensors[first.name].ndim != 2:
        raise UserError(f"{name}: {first.name} has the shape {tensors[first.name].shape}, but it must have two axes.")
    sizes = dict(zip(first.axes, tensors[first.name].shape, strict=True))
    arrays = {row.field: _canonical(row, tensors[row.name], sizes, name) for row in rows}
    settings.check(sizes["S"], name)
    return Weights(**arrays, settings=settings)


def _canonical(row: Row, tensor: np.ndarray, sizes: Mapping[str, int], name: str) -> Any:
    """A tensor in our order of axes, float32."""
    expected = () if row.axes == "1" else tuple(sizes[axis] for axis in row.axes)
    if tensor.shape != expected:
        raise UserError(f"{name}: {row.name} has the shape {tensor.shape}, but {expected} goes with W_enc.")
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise UserError(f"{name}: {row.name} holds {tensor.dtype} values, but weights are floating-point numbers.")
    values = np.asarray(tensor, np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{name}: {row.name} contains NaN or infinite values; the file is damaged, get another one.")
    if row.axes == "1":
        return jnp.full(sizes["S"], values)
    return jnp.asarray(values.T if row.transposed or row.axes != _OWN_AXES[row.field] else values)


def to_tensors(rows: tuple[Row, ...], weights: Weights) -> dict[str, np.ndarray]:
    """The tensors of a file with these rows: the inverse of `to_weights`."""
    tensors = {}
    for row in rows:
        values = np.asarray(getattr(weights, row.field), np.float32)
        if row.axes == "1":
            values = values[0]
        elif row.transposed or row.axes != _OWN_AXES[row.field]:
            values = values.T
        tensors[row.name] = np.ascontiguousarray(values).reshape(values.shape)
    return tensors

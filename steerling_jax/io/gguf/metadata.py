"""Typed access to the metadata of a GGUF file, with errors that name the file and the field."""

from __future__ import annotations

from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader

_LARGEST = 1 << 31  # of a size; beyond it the field is damaged


class MetadataReader:
    """Values of a file's metadata. Keys without a dot at the front are complete; sizes are the architecture's."""

    def __init__(self, header: GgufHeader):
        self.header, self.path = header, header.path
        self._metadata = header.metadata

    def text(self, key: str) -> str:
        """The text at `key`."""
        value = self._metadata.get(key)
        if not isinstance(value, str):
            raise self._invalid(key, "a text")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The positive whole number at the architecture's `key`; equal numbers for all layers count as one."""
        key, value = self._of_architecture(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or (value != default and not 0 < value < _LARGEST):
            raise self._invalid(key, "a positive whole number, the same for all layers")
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """The positive number at the architecture's `key`, rounded as float32 prints it: 1e-05, not 9.99999974e-06."""
        key, value = self._of_architecture(key, default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._invalid(key, "a positive number")
        return float(str(np.float32(value)))

    def scaling(self) -> dict[str, Any]:
        """The fields of `rope_parameters` for the file's RoPE scaling; none for no scaling."""
        kind = self._of_architecture("rope.scaling.type", "none")[1]
        if kind == "none":
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": self.decimal("rope.scaling.factor")}
        raise UserError(f"{self.path} has the RoPE scaling {kind!r}, which is not read; use one of: none, linear.")

    def _of_architecture(self, key: str, default: Any) -> tuple[str, Any]:
        key = f"{self.text('general.architecture')}.{key}"
        return key, self._metadata.get(key, default)

    def _invalid(self, key: str, expected: str) -> UserError:
        if key not in self._metadata:
            return UserError(f"{self.path} has no field {key}; use a complete GGUF file.")
        return UserError(f"{self.path}: the field {key} is not {expected}; convert the model again.")

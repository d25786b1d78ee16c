"""How to compute: dtypes, rematerialisation and the attention implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steerling_jax.errors import require


@dataclass(frozen=True)
class Compute:
    """How to compute, apart from what: dtypes by name and whether to recompute layers in the backward pass.

    dtype: of activations between operations and in attention, as the published package's module dtype.
    matmul_dtype: of the operands of products with weights (None: as `dtype`). Products always accumulate in float32.
    remat: keep only each layer's input for the backward pass.
    attention: of passes over whole sequences. 'splash' is a kernel that only TPUs have; lengths are multiples of 128.
    faithful_rounding: round logits to `dtype` and never skip the concept heads, as the published package in bfloat16.
    """

    dtype: str = "float32"
    matmul_dtype: str | None = None
    remat: bool = False
    faithful_rounding: bool = False
    attention: Literal["xla", "splash"] = "xla"

    def __post_init__(self) -> None:
        require(
            self.attention in ("xla", "splash"),
            f"compute.attention is {self.attention!r}, but it must be 'xla' or 'splash' (which needs TPUs).",
        )

    @property
    def operands(self) -> str:
        return self.matmul_dtype or self.dtype

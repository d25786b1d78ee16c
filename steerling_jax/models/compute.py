"""Settings of the computation that do not change what a model is: dtypes, rematerialisation, attention kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steerling_jax.errors import require


@dataclass(frozen=True)
class Compute:
    """Settings of the computation; dtypes by name.

    dtype: of activations between operations and in attention, like the module dtype of the published package.
    matmul_dtype: of the operands of products with weights; None for `dtype`. Products always accumulate in float32.
    remat: store only each layer's input for the backward pass, and compute the rest again.
    unroll: compile stacked layers one after the other, not as a loop. On a CPU a training step is then about a tenth
    faster, because what the backward pass needs is not copied into arrays of all layers; but compile time grows with
    depth.
    attention: the implementation for passes over whole sequences. 'splash' is a kernel for TPUs only, and needs lengths
    that are multiples of 128.
    faithful_rounding: round logits to `dtype` and always run the concept heads, as the published package in bfloat16
    does.
    """

    dtype: str = "float32"
    matmul_dtype: str | None = None
    remat: bool = False
    faithful_rounding: bool = False
    attention: Literal["xla", "splash"] = "xla"
    unroll: bool = False

    def __post_init__(self) -> None:
        require(
            self.attention in ("xla", "splash"),
            f"compute.attention is {self.attention!r}, but it must be 'xla' or 'splash' (which needs TPUs).",
        )

    @property
    def operands(self) -> str:
        """The dtype of the operands of products with weights."""
        return self.matmul_dtype or self.dtype

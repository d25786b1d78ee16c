"""RoPE scaling of Llama 3.1 in GGUF files, which store its result: a divisor for each frequency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError

# The only values that were published. The function depends on the two and on `original_max_position_embeddings` through
# two ratios only, so another choice of `low` gives the same divisors with other lengths.
_LOW, _HIGH = 1.0, 4.0


def llama3_scaling(path: str | Path, divisors: np.ndarray, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` that give these divisors (head_dim / 2,) of the frequencies.

    The file does not say what the divisors were computed from, so the original context length is searched among the
    powers of two. Raises `UserError` if none gives the divisors.
    """
    head_dim, theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
    if divisors.shape == (head_dim // 2,) and np.isfinite(divisors).all():
        factor = float(np.float32(divisors[-1]))  # the lowest frequency is divided by the whole factor
        for original in (1 << exponent for exponent in range(4, 24)):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original,
            }
            if np.allclose(_divisors(head_dim, theta, factor, original), divisors, rtol=1e-4):
                return scaling
    raise UserError(f"{path}: the tensor 'rope_freqs.weight' is not the scaling of Llama 3.1, so it is not read.")


def _divisors(head_dim: int, theta: float, factor: float, original: int) -> np.ndarray:
    """The divisors of the frequencies for an original context length, as Llama 3.1 defines them."""
    turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    smooth = np.clip((turns - _LOW) / (_HIGH - _LOW), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)

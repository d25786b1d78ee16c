"""A short name for a model's weights: what was computed with them is refused for others."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.backbone import Params
from steerling_jax.config import ModelConfig

_VALUES = 256  # of each tensor, evenly spaced: every update of a training run changes all tensors


def fingerprint(params: Params, config: ModelConfig) -> str:
    """16 hexadecimal digits, of the configuration and of 256 values of each tensor, at bfloat16: the same whether the
    weights were loaded as float32 or bfloat16."""
    digest = hashlib.sha256(repr(config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        flat = leaf.reshape(-1)
        at = np.linspace(0, flat.size - 1, min(flat.size, _VALUES)).astype(np.int64)
        values = np.asarray(jax.device_get(flat[at]).astype(jnp.bfloat16))
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]

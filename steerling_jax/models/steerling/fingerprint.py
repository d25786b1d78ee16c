"""A short name for a model's weights: what was computed with them is refused for others."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_shapes import PIECES, fused
from steerling_jax.parallel.sharding import to_host

_VALUES = 256  # of each tensor, evenly spaced: every update of a training run changes all tensors


def fingerprint(params: Params, config: ModelConfig) -> str:
    """16 hexadecimal digits, of the configuration and of 256 values of each published tensor, at bfloat16: the same
    whether the weights were loaded as float32 or bfloat16."""
    digest = hashlib.sha256(repr(config).encode())
    for path, published in jax.tree_util.tree_leaves_with_path(jax.eval_shape(fused, params)):
        at = np.linspace(0, published.size - 1, min(published.size, _VALUES)).astype(np.int64)
        digest.update(f"{jax.tree_util.keystr(path)} {published.shape}".encode())
        digest.update(_values(_leaves(params, [key.key for key in path]), at).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def _leaves(params: Params, path: list[str]) -> list[jax.Array]:
    """Those of a published tensor, in the order of its rows."""
    *module, name, kind = path
    tree: Any = params
    for key in module:
        tree = tree[key]
    return [tree[piece][kind] for piece in PIECES.get(name, (name,))]


def _values(leaves: list[jax.Array], at: np.ndarray) -> np.ndarray:
    """The values at flat places `at` of leaves joined layer by layer (of one leaf as it is), without joining them."""
    if len(leaves) == 1:
        return _at(leaves[0], at)
    sizes = [leaf.size // len(leaf) for leaf in leaves]
    layer, inside = np.divmod(at, sum(sizes))
    found = np.empty(len(at), leaves[0].dtype)
    for leaf, size in zip(leaves, sizes, strict=True):
        mine = (inside >= 0) & (inside < size)
        found[mine] = _at(leaf, layer[mine] * size + inside[mine])
        inside = inside - size
    return found


def _at(leaf: jax.Array, places: np.ndarray) -> np.ndarray:
    """The values at flat places. The leaf is not made flat: one that lies on many devices would be gathered."""
    values = leaf[np.unravel_index(places, leaf.shape)]
    return to_host(values) if isinstance(values, jax.Array) else values

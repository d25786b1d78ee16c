"""A fingerprint of a model's weights, stored with what was computed from them so that it is not used with others."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import BOTTLENECK, Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_shapes import PIECES, fused
from steerling_jax.parallel.sharding import to_host

_VALUES = 256  # of each tensor, evenly spaced; enough, because a training step changes practically all values


def fingerprint(params: Params, config: Any) -> str:
    """16 hexadecimal digits: a hash of the configuration and of 256 values of each published tensor. Models of other
    families have their tensors as published. An attached bottleneck counts, too: it changes every logit.

    The values are rounded to bfloat16, so the fingerprint does not depend on the dtype that the weights were loaded in.
    """
    # Without a dictionary the configuration reads as it did before there was such a field.
    digest = hashlib.sha256(repr(config).replace(", dictionary=None", "").encode())
    for leaf in jax.tree.leaves(params.get(BOTTLENECK)):
        at = np.linspace(0, leaf.size - 1, min(leaf.size, _VALUES)).astype(np.int64)
        digest.update(_at(leaf, at).astype(jnp.bfloat16).tobytes())
    params = {name: value for name, value in params.items() if name != BOTTLENECK}
    tensors = jax.eval_shape(fused, params) if isinstance(config, ModelConfig) else params
    for path, published in jax.tree_util.tree_leaves_with_path(tensors):
        at = np.linspace(0, published.size - 1, min(published.size, _VALUES)).astype(np.int64)
        digest.update(f"{jax.tree_util.keystr(path)} {published.shape}".encode())
        digest.update(_values(_leaves(params, [key.key for key in path]), at).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def _leaves(params: Params, path: list[str]) -> list[jax.Array]:
    """The leaves that make up a published tensor, in the order of its rows."""
    *module, name, kind = path
    tree: Any = params
    for key in module:
        tree = tree[key]
    return [tree[piece][kind] for piece in PIECES.get(name, (name,))]


def _values(leaves: list[jax.Array], at: np.ndarray) -> np.ndarray:
    """The values at flat indices `at` of the published tensor that `leaves` make up, without building it.

    The published tensor is the leaves concatenated within each layer; a single leaf is the tensor itself.
    """
    if len(leaves) == 1:
        return _at(leaves[0], at)
    sizes = [leaf.size // len(leaf) for leaf in leaves]
    layer, offset = np.divmod(at, sum(sizes))
    values = np.empty(len(at), leaves[0].dtype)
    for leaf, size in zip(leaves, sizes, strict=True):
        here = (offset >= 0) & (offset < size)
        values[here] = _at(leaf, layer[here] * size + offset[here])
        offset = offset - size
    return values


def _at(leaf: jax.Array, at: np.ndarray) -> np.ndarray:
    """The values at flat indices. The leaf is not flattened, which would gather a sharded one on every device."""
    values = leaf[np.unravel_index(at, leaf.shape)]
    return to_host(values) if isinstance(values, jax.Array) else values

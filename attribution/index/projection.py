"""Random projections that make the gradients of a model comparable vectors of a few thousand features.

The gradient G of a weight matrix is projected from both sides, `P G Qᵀ`, where P and Q have random signs. For
independent rows of ±1/√s the expectation of `PᵀP` is the identity, so inner products of projected gradients are
unbiased estimates of inner products of whole ones, and the more precise the larger s is. Projecting from both sides
needs only matrices of size (s, side of G); one projection of the flattened G would need s² × (size of G) random numbers
(Choe et al., LoGra, 2024).

Legend: B passages, L layers, s side of a projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.published_shapes import fused

# For each parameter the projection from the left and from the right; None leaves that axis whole.
Signs = tuple[tuple[jax.Array | None, jax.Array | None], ...]
_HEADS = ("known_head", "unknown_head")


@dataclass(frozen=True)
class Projection:
    """A matrix's gradient becomes (side, side) features and a vector's side²; None keeps gradients whole."""

    side: int | None = 16
    seed: int = 0


class FeatureBlock(NamedTuple):
    """Features [start, end) belong to one parameter of one layer."""

    name: str
    start: int
    end: int


def project_gradients(gradients: Params, signs: Signs, config: ModelConfig) -> jax.Array:
    """Features (B, F) float32 of gradients with a leading axis of passages. Layers share their signs."""
    leaves = [
        leaf.astype(jnp.float32) if _names(path)[0] == "blocks" else leaf.astype(jnp.float32)[:, None]
        for path, leaf in jax.tree_util.tree_leaves_with_path(fused(gradients))
        if _has_gradient(path, config)
    ]
    parts = [_project(leaf, *pair) for leaf, pair in zip(leaves, signs, strict=True)]
    return jnp.concatenate(parts, axis=1)


def _project(gradient: jax.Array, left: jax.Array | None, right: jax.Array | None) -> jax.Array:
    """A parameter's gradients (B, L, …) as features (B, ·)."""
    if left is not None:
        gradient = jnp.einsum("so,blo...->bls...", left, gradient)
    if right is not None:
        gradient = gradient @ right.T
    return gradient.reshape(gradient.shape[0], -1)


@lru_cache(maxsize=4)
def projection_signs(config: ModelConfig, projection: Projection) -> Signs:
    """The random sign matrices of every parameter that has a gradient."""
    pairs = []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(_published_shapes(config))):
        if _has_gradient(path, config):
            shape, side = leaf.shape[1:] if _names(path)[0] == "blocks" else leaf.shape, projection.side
            keys = jax.random.split(jax.random.fold_in(jax.random.key(projection.seed), number))
            rows = None if side is None else side**2 if len(shape) == 1 else side
            pairs.append(
                (_sign_matrix(keys[0], rows, shape[0]), _sign_matrix(keys[1], rows, shape[1]))
                if len(shape) == 2
                else (_sign_matrix(keys[0], rows, shape[0]), None)
            )
    return tuple(pairs)


def _sign_matrix(key: jax.Array, rows: int | None, width: int) -> jax.Array | None:
    """(rows, width) of ±1/√rows, or None if the axis is not wider than its projection."""
    if rows is None or width <= rows:
        return None
    return jax.random.rademacher(key, (rows, width), jnp.float32) * rows**-0.5


@lru_cache
def feature_blocks(config: ModelConfig, projection: Projection) -> tuple[FeatureBlock, ...]:
    """The features of each parameter of each layer, in order."""
    blocks: list[FeatureBlock] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(_published_shapes(config)):
        if not _has_gradient(path, config):
            continue
        names, shape = _names(path), leaf.shape
        layers = 1
        if names[0] == "blocks":
            layers, *shape = shape
        size, side = int(np.prod(shape)), projection.side
        if side is not None:
            size = min(size, side**2) if len(shape) == 1 else min(shape[0], side) * min(shape[1], side)
        for layer in range(layers):
            start = blocks[-1].end if blocks else 0
            prefix = f"{layer}/" if names[0] == "blocks" else ""
            blocks.append(FeatureBlock(prefix + "/".join(names), start, start + size))
    return tuple(blocks)


def _published_shapes(config: ModelConfig) -> Params:
    """Shapes of the parameters in the published layout.

    Features are defined on that layout, so that an index stays valid if this implementation splits its weights in
    another way.
    """
    return jax.eval_shape(fused, param_shapes(config))


def _names(path: tuple) -> list[str]:
    return [str(key.key) for key in path]


def _has_gradient(path: tuple, config: ModelConfig) -> bool:
    """Whether a parameter can have a gradient that is not zero.

    With the epsilon correction the composed features equal the hidden state, so the loss does not depend on the heads.
    Their features would all be zero.
    """
    concept = config.concept
    return not (concept is not None and concept.use_epsilon_correction and _names(path)[0] in _HEADS)

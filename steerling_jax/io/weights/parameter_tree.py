"""Parameters as nested dicts: access to a leaf by its path, and the sharding of each leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from steerling_jax.models.families import AnyConfig, param_shardings
from steerling_jax.models.steerling.backbone import Params

ParamPath = tuple[str, ...]
Sharding = jax.sharding.Sharding
# Shardings by parameter: a nested dict like the parameters, or a function of a parameter's path. None places a
# parameter on the default device.
ShardingByPath = Mapping[str, Any] | Callable[[ParamPath], Sharding | None]
# The same, or the mesh on which the family's table shards the parameters.
Shardings = ShardingByPath | Mesh


def resolve_shardings(shardings: Shardings | None, config: AnyConfig) -> ShardingByPath | None:
    """`shardings` by parameter, also where they were given as a mesh."""
    return param_shardings(config, shardings) if isinstance(shardings, Mesh) else shardings


def sharding_of(shardings: ShardingByPath | None, path: ParamPath) -> Sharding | None:
    """The sharding of the parameter at `path`."""
    if shardings is None or callable(shardings):
        return shardings(path) if shardings else None
    sharding: Any = shardings
    for key in path:
        sharding = sharding[key]
    return sharding


def get_leaf(tree: Any, path: ParamPath) -> Any:
    """The leaf at `path` of nested mappings; None if there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def put_leaf(tree: Params, path: ParamPath, leaf: Any) -> None:
    """Sets the leaf at `path` of nested dicts, creating the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf

"""One table: a parameter's path to its logical axes, and logical axes to axes of the device mesh.

Mesh axes: `data` splits the batch, `fsdp` the parameters (gathered where they are used), `tensor` the work inside a
layer. Concept tables are split over concepts, so that a device scores its own concepts and only candidates travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.backbone import Params
from steerling_jax.config import ModelConfig
from steerling_jax.model import param_shapes

Axes = tuple[str | None, ...]

# Path (without the last part, `weight` or `bias`) to the logical axes of the weight.      shape
LOGICAL_AXES: dict[str, Axes] = {
    "tok_emb": ("vocab", "embed"),  # (V, D)
    "lm_head": ("vocab", "embed"),  # (V, D)
    "blocks/attn/c_attn": ("layers", "heads", "embed"),  # (L, D + 2·G·d, D)
    "blocks/attn/c_proj": ("layers", "embed", "heads"),  # (L, D, D)
    "blocks/attn/q_norm": ("layers", None),  # (L, d)
    "blocks/attn/k_norm": ("layers", None),  # (L, d)
    "blocks/mlp/c_fc": ("layers", "mlp", "embed"),  # (L, 2F, D)
    "blocks/mlp/c_proj": ("layers", "embed", "mlp"),  # (L, D, F)
    "blocks/ln_1": ("layers", None),  # (L, D)
    "blocks/ln_2": ("layers", None),  # (L, D)
    "ln_f": (None,),  # (D,)
    "known_head/concept_embedding": ("concepts", "embed"),  # (C, D)
    "known_head/concept_predictor": ("concepts", "embed"),  # (C, D)
    "known_head/concept_query_projection": (None, "embed"),  # (D, D)
    "unknown_head/concept_embedding": ("concepts", "embed"),  # (C, D)
    "unknown_head/concept_predictor": ("concepts", "embed"),  # (C, D)
    "unknown_head/concept_query_projection": (None, "embed"),  # (D, D)
    "unknown_head/embedding_coef": ("concepts", None),  # (C, R)
    "unknown_head/embedding_basis": ("embed", None),  # (D, R)
    "unknown_head/predictor_down": (None, "embed"),  # (R, D)
    "unknown_head/predictor_up": ("concepts", None),  # (C, R)
}

# Logical axis to mesh axes; what is not here stays whole.
MESH_AXES: dict[str, str] = {
    "batch": "data",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "concepts": "tensor",
    "embed": "fsdp",
}


def logical_axes(path: Sequence[str]) -> Axes:
    """Logical axes of the parameter at `path`, ("blocks", "attn", "c_attn", "weight") say. KeyError for an unknown
    one.
    """
    *module, leaf = path
    axes = LOGICAL_AXES["/".join(module)]
    if leaf == "weight":
        return axes
    # A bias has the axes of what it is added to: a weight without its input axis, a gain as it is.
    return axes if axes[-1] is None else axes[:-1]


def partition_spec(axes: Axes) -> PartitionSpec:
    """Logical axes to the mesh axes that split them."""
    return PartitionSpec(*(MESH_AXES.get(axis) if axis else None for axis in axes))


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """A NamedSharding for every parameter. Mesh axes that the mesh lacks, or that do not divide a size, are left
    out.
    """

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = partition_spec(logical_axes([str(key.key) for key in path]))
        fitting = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree_util.tree_map_with_path(one, param_shapes(config))

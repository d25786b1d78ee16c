"""One table: a parameter's path to its logical axes; `mesh.py` has the axes of the device mesh that split them.

Mesh axes: `data` splits the batch, `fsdp` the batch and the parameters (gathered where they are used), `tensor` the
work inside a layer, by heads and by the inner width. Concept tables are split over concepts, so that a device scores
its own concepts and only candidates travel. A step is compiled inside `jax.set_mesh(mesh)`: `constrain` in the model
and the heads' work on their own concepts go by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.parallel.mesh import Axes, partition_spec

# Path (without the last part, `weight` or `bias`) to the logical axes of the weight.      shape
LOGICAL_AXES: dict[str, Axes] = {
    "tok_emb": ("vocab", "embed"),  # (V, D)
    "lm_head": ("vocab", "embed"),  # (V, D)
    "blocks/attn/c_q": ("layers", "heads", "embed"),  # (L, D, D)
    "blocks/attn/c_kv": ("layers", None, "kv_heads", "embed"),  # (L, 2, G·d, D); whole where G does not split
    "blocks/attn/c_proj": ("layers", "embed", "heads"),  # (L, D, D)
    "blocks/attn/q_norm": ("layers", None),  # (L, d)
    "blocks/attn/k_norm": ("layers", None),  # (L, d)
    "blocks/mlp/c_fc": ("layers", None, "mlp", "embed"),  # (L, 2 or 1, F, D)
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
    "unknown_head/embedding_coef": ("concepts", "rank"),  # (C, R)
    "unknown_head/embedding_basis": ("embed", None),  # (D, R)
    "unknown_head/predictor_down": (None, "embed"),  # (R, D)
    "unknown_head/predictor_up": ("concepts", "rank"),  # (C, R)
    "unknown_head/offset": (None,),  # (D,)
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


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """A NamedSharding for every parameter. Mesh axes that the mesh lacks, or that do not divide a size (of heads:
    their number), are left out.
    """
    counts: dict[str | None, int] = {"heads": config.n_head, "kv_heads": config.kv_heads}

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        logical = logical_axes([str(key.key) for key in path])
        sizes: list[Any] = [counts.get(name, size) for name, size in zip(logical, leaf.shape, strict=True)]
        return NamedSharding(mesh, partition_spec(logical, sizes, mesh))

    return jax.tree_util.tree_map_with_path(one, param_shapes(config))

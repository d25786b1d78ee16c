"""One table for all decoder families: a parameter's path to its logical axes, and from there to its sharding.

`parallel/mesh.py` has the axes of the device mesh that split logical axes. Parameters have the names of the published
tensors without the prefix `model.`, so the table is also the map from weights to parameters; only experts differ, which
are published one by one, or with gate and up projection fused, and stacked here.

Legend: V vocabulary, D width, H heads, G key/value heads, d head size, F inner width, E experts; of DeltaNet layers Hk
and Hv heads of keys and values, Dk and Dv their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.backbone import param_shapes
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.parallel.mesh import Axes, partition_spec

# Path, without `layers`, the layer's number and the last part (`weight` or `bias`), to the axes of the weight.  shape
LOGICAL_AXES: dict[str, Axes] = {
    "embed_tokens": ("vocab", "embed"),  # (V, D)
    "lm_head": ("vocab", "embed"),  # (V, D)
    "norm": (None,),  # (D,)
    "input_layernorm": (None,),  # (D,)
    "post_attention_layernorm": (None,),  # (D,)
    "pre_feedforward_layernorm": (None,),  # (D,)
    "post_feedforward_layernorm": (None,),  # (D,)
    "self_attn/q_proj": ("heads", "embed"),  # (H·d, D), or with an output gate (H·2d, D)
    "self_attn/k_proj": ("kv_heads", "embed"),  # (G·d, D)
    "self_attn/v_proj": ("kv_heads", "embed"),  # (G·d, D)
    "self_attn/o_proj": ("embed", "heads"),  # (D, H·d)
    "self_attn/q_norm": (None,),  # (d,)
    "self_attn/k_norm": (None,),  # (d,)
    "mlp/gate_proj": ("mlp", "embed"),  # (F, D)
    "mlp/up_proj": ("mlp", "embed"),  # (F, D)
    "mlp/down_proj": ("embed", "mlp"),  # (D, F)
    "mlp/gate": (None, "embed"),  # (E, D), the router
    "mlp/experts/gate_proj": (None, "mlp", "embed"),  # (E, F, D)
    "mlp/experts/up_proj": (None, "mlp", "embed"),  # (E, F, D)
    "mlp/experts/down_proj": (None, "embed", "mlp"),  # (E, D, F)
    "mlp/shared_expert/gate_proj": ("mlp", "embed"),  # (F, D)
    "mlp/shared_expert/up_proj": ("mlp", "embed"),  # (F, D)
    "mlp/shared_expert/down_proj": ("embed", "mlp"),  # (D, F)
    "mlp/shared_expert_gate": (None, "embed"),  # (1, D)
    # Rows of queries, keys and values of all heads in one: shards of them would not be whole heads.
    "linear_attn/in_proj_qkv": (None, "embed"),  # (2·Hk·Dk + Hv·Dv, D)
    "linear_attn/in_proj_z": ("value_heads", "embed"),  # (Hv·Dv, D)
    "linear_attn/in_proj_b": (None, "embed"),  # (Hv, D)
    "linear_attn/in_proj_a": (None, "embed"),  # (Hv, D)
    "linear_attn/conv1d": (None, None, None),  # (2·Hk·Dk + Hv·Dv, 1, taps)
    "linear_attn/A_log": (None,),  # (Hv,)
    "linear_attn/dt_bias": (None,),  # (Hv,)
    "linear_attn/norm": (None,),  # (Dv,)
    "linear_attn/out_proj": ("embed", "value_heads"),  # (D, Hv·Dv)
}


def logical_axes(path: Sequence[str]) -> Axes:
    """Logical axes of the parameter at `path`, ("layers", "3", "mlp", "up_proj", "weight") say. KeyError for an unknown
    one.
    """
    *module, leaf = path[2:] if path[0] == "layers" else path
    if leaf not in ("weight", "bias"):
        return LOGICAL_AXES["/".join([*module, leaf])]
    axes = LOGICAL_AXES["/".join(module)]
    # A bias has the axes of what it is added to: a weight's without its input axis.
    return axes if leaf == "weight" else axes[:-1]


def parameter_shapes(config: DecoderConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {tuple(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def param_shardings(config: DecoderConfig, mesh: Mesh) -> Params:
    """A NamedSharding for every parameter. Mesh axes that the mesh lacks, or that do not divide a size (of heads: their
    number), are left out.
    """
    counts: dict[str | None, int] = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
    if config.linear is not None:
        counts["value_heads"] = config.linear.value_heads

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        logical = logical_axes([str(key.key) for key in path])
        sizes: list[Any] = [counts.get(name, size) for name, size in zip(logical, leaf.shape, strict=True)]
        return NamedSharding(mesh, partition_spec(logical, sizes, mesh))

    return jax.tree_util.tree_map_with_path(one, param_shapes(config))

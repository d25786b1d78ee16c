"""Low-rank adapters: `y = W x + alpha / rank · up (down x)` for the projections of the layers, with W fixed.

The adapters are stored next to the weights that they add to, as `blocks/attn/c_q/lora_down` and `lora_up`, where
`layers.Linear` applies them if they exist; code that does not use adapters needs no change. A checkpoint holds the
adapters alone, and an exported model has them merged into its weights.

Source: Hu et al. 2021, LoRA.

Legend: L layers, r rank.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.sharding import param_shardings

MODULES = ("attn/c_q", "attn/c_kv", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters: rank, scale alpha / rank, and the `modules` of every layer that have one."""

    rank: int = 16
    alpha: float = 32.0
    modules: tuple[str, ...] = MODULES

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}, but it must be at least 1.")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha is {self.alpha}, but it must be positive.")
        if not self.modules:
            raise UserError(f"lora.modules is empty, so nothing would be trained; choose from {', '.join(MODULES)}.")
        for name in self.modules:
            if name not in MODULES:
                near = difflib.get_close_matches(name, MODULES, n=1) or MODULES
                raise UserError(
                    f"lora.modules has {name!r}, which is not a projection; did you mean {' or '.join(near)}?"
                )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapters(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Initial float32 adapters: down (L, r, in), normal with variance 1 / in, and up (L, …, out, r), zero.

    With `up` zero they add nothing, so training starts from the given model.
    """
    adapters: Params = {"blocks": {}}
    for number, module in enumerate(sorted(lora.modules)):
        branch, name = module.split("/")
        L, *out, size = param_shapes(config)["blocks"][branch][name]["weight"].shape
        down = jax.random.normal(jax.random.fold_in(key, number), (L, lora.rank, size)) * size**-0.5
        adapters["blocks"].setdefault(branch, {})[name] = {DOWN: down, UP: jnp.zeros((L, *out, lora.rank))}
    return adapters


def with_adapters(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """The parameters with adapters added next to their weights, for a forward pass; the weights get no gradient."""

    def add(module: Params, adapter: Params) -> Params:
        return {**module, DOWN: adapter[DOWN], UP: lora.scale * adapter[UP]}

    return _at_modules(jax.lax.stop_gradient(params), adapters, add)


def merge_adapters(params: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Parameters without adapters that compute the same: `W + alpha / rank · up @ down`, added in float32."""

    def merged(module: Params, adapter: Params) -> Params:
        weight, down, up = module["weight"], adapter[DOWN], adapter[UP]
        added = jnp.einsum("l...r,lri->l...i", up, down, precision=jax.lax.Precision.HIGHEST)
        return {**module, "weight": (weight.astype(jnp.float32) + lora.scale * added).astype(weight.dtype)}

    return _at_modules(params, adapters, merged)


def adapter_shardings(config: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """The shardings of adapters: those of their weights, along `in` or `out`; the rank is not sharded."""
    weights = param_shardings(config, mesh)
    shapes = jax.eval_shape(partial(init_adapters, config, lora), jax.random.key(0))

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        *module, which = [key.key for key in path]
        sharding = weights
        for name in module:
            sharding = sharding[name]
        L, *out, size = sharding["weight"].spec
        return NamedSharding(mesh, PartitionSpec(L, None, size) if which == DOWN else PartitionSpec(L, *out, None))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _at_modules(params: Params, adapters: Params, change: Callable[[Params, Params], Params]) -> Params:
    blocks = dict(params["blocks"])
    for branch, modules in adapters["blocks"].items():
        changed = {name: change(blocks[branch][name], adapter) for name, adapter in modules.items()}
        blocks[branch] = {**blocks[branch], **changed}
    return {**params, "blocks": blocks}

"""Low-rank adapters: `y = W x + alpha / rank · up (down x)` for the projections of the layers, with W fixed.

The adapters are stored next to the weights that they add to, as `blocks/attn/c_q/lora_down` and `lora_up` (in decoders
`layers/3/self_attn/q_proj/lora_down`), where `layers.Linear` applies them if they exist; code that does not use
adapters needs no change. A checkpoint holds the adapters alone, and an exported model has them merged into its weights.

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

from steerling_jax.errors import UserError, require
from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig, param_shapes, param_shardings

MODULES = ("attn/c_q", "attn/c_kv", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters.

    rank, alpha: the scale of an adapter is alpha / rank. modules: the projections of every layer that have one, by
    their paths inside a layer: of Steerling models `attn/c_q` for example, of decoders `self_attn/q_proj`; None for all
    of the model's projections.
    """

    rank: int = 16
    alpha: float = 32.0
    modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"lora.rank is {self.rank}, but it must be at least 1.")
        require(self.alpha > 0, f"lora.alpha is {self.alpha}, but it must be positive.")
        require(self.modules != (), "lora.modules is empty, so nothing would be trained; name some, or give None.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def modules_of(self, config: AnyConfig) -> tuple[str, ...]:
        """The modules that have adapters in a model. Raises `UserError` for one that no layer of the model has."""
        known = projections(config)
        for name in self.modules or ():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1) or known
                raise UserError(
                    f"lora.modules has {name!r}, which is not a projection of this model; did you mean "
                    f"{' or '.join(near)}?"
                )
        return known if self.modules is None else self.modules


def projections(config: AnyConfig) -> tuple[str, ...]:
    """The modules of a model's layers that can have adapters, by their paths inside a layer."""
    return tuple(dict.fromkeys(map(_inside_layer, _projection_shapes(config))))


def _projection_shapes(config: AnyConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of the weights that can have adapters, by the paths of their modules.

    In decoders these are all linear maps between features. Routers are left out, and experts, which `layers.Linear`
    does not apply.
    """
    if not isinstance(config, DecoderConfig):
        blocks = param_shapes(config)["blocks"]
        paths = (("blocks", *name.split("/")) for name in MODULES)
        return {path: blocks[path[1]][path[2]]["weight"].shape for path in paths}
    shapes = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        *path, kind = [key.key for key in keys]
        projection = path[-1].endswith("_proj") or path[-1].startswith("in_proj_")
        if path[0] == "layers" and kind == "weight" and leaf.ndim == 2 and projection:
            shapes[tuple(path)] = leaf.shape
    return shapes


def _inside_layer(path: tuple[str, ...]) -> str:
    """`self_attn/q_proj` of ("layers", "3", "self_attn", "q_proj"); Steerling's layers are stacked: ("blocks", …)."""
    return "/".join(path[1:] if path[0] == "blocks" else path[2:])


def _stack_axes(config: AnyConfig) -> int:
    """Leading axes of a weight that count layers: Steerling's layers are stacked, those of decoders are separate."""
    return 0 if isinstance(config, DecoderConfig) else 1


def init_adapters(config: AnyConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Initial float32 adapters: down (L, r, in), normal with variance 1 / in, and up (L, …, out, r), zero; without the
    axis L in decoders.

    With `up` zero they add nothing, so training starts from the given model.
    """
    adapters: Params = {}
    modules, stack = lora.modules_of(config), _stack_axes(config)
    paths = {path: shape for path, shape in _projection_shapes(config).items() if _inside_layer(path) in modules}
    for number, (path, shape) in enumerate(sorted(paths.items())):
        layers, out, size = shape[:stack], shape[stack:-1], shape[-1]
        down = jax.random.normal(jax.random.fold_in(key, number), (*layers, lora.rank, size)) * size**-0.5
        module = adapters
        for name in path:
            module = module.setdefault(name, {})
        module |= {DOWN: down, UP: jnp.zeros((*layers, *out, lora.rank))}
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
        product = "l...r,lri->l...i" if down.ndim == 3 else "...r,ri->...i"
        added = jnp.einsum(product, up, down, precision=jax.lax.Precision.HIGHEST)
        return {**module, "weight": (weight.astype(jnp.float32) + lora.scale * added).astype(weight.dtype)}

    return _at_modules(params, adapters, merged)


def adapter_shardings(config: AnyConfig, lora: LoraConfig, mesh: Mesh) -> Params:
    """The shardings of adapters: those of their weights, along `in` or `out`; the rank is not sharded."""
    weights = param_shardings(config, mesh)
    shapes = jax.eval_shape(partial(init_adapters, config, lora), jax.random.key(0))
    layers = _stack_axes(config)

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        *module, which = [key.key for key in path]
        sharding = weights
        for name in module:
            sharding = sharding[name]
        spec = sharding["weight"].spec
        own = (*spec[:layers], None, spec[-1]) if which == DOWN else (*spec[:-1], None)
        return NamedSharding(mesh, PartitionSpec(*own))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _at_modules(params: Params, adapters: Params, change: Callable[[Params, Params], Params]) -> Params:
    """`params` with `change(module, adapter)` in place of each module that has an adapter."""
    if DOWN in adapters:
        return change(params, adapters)
    return {**params, **{name: _at_modules(params[name], adapter, change) for name, adapter in adapters.items()}}

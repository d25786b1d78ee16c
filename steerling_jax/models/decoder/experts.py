"""Mixture of experts (Flax Linen): each token goes through the few experts that its router selects.

Tokens are sorted by expert, so that an expert's tokens are consecutive rows, and no expert computes other tokens. On a
mesh each device sorts the tokens of its own texts, and has a part of the inner width of every expert.

Legend: N tokens, k experts of a token, M = N · k rows, E experts, D width, F inner width of an expert, b rows of a
tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig, Experts
from steerling_jax.models.decoder.layers import GatedMLP, activation
from steerling_jax.models.decoder.ragged import ragged_product
from steerling_jax.models.layers import Linear, matmul_t
from steerling_jax.parallel.mesh import current_mesh, partition_spec

_TILE = 64  # rows of an expert that are multiplied at once; a larger tile wastes more rows at the end of each expert


class ExpertWeights(NamedTuple):
    """Weights of all experts: gate and up (E, F, D), down (E, D, F)."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class MixtureOfExperts(nn.Module):
    """`Σ weight_e · expert_e(x)` over the selected experts, plus the shared expert times its sigmoid gate if there is
    one."""

    config: DecoderConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, moe = self.config, self.config.experts
        assert moe is not None
        weights, selected = route(Linear(moe.count, self.compute, name="gate")(x), moe)
        experts = _Stacks(moe, name="experts")(x.shape[-1])
        y = run_experts(x, selected, weights, experts, c, self.compute)
        if moe.shared_size:
            shared = GatedMLP(c, self.compute, moe.shared_size, name="shared_expert")(x)
            y = y + shared * jax.nn.sigmoid(Linear(1, self.compute, name="shared_expert_gate")(x))
        return y


class _Stacks(nn.Module):
    """Declares the experts' weights."""

    moe: Experts

    @nn.compact
    def __call__(self, D: int) -> ExpertWeights:
        E, F = self.moe.count, self.moe.intermediate_size
        shapes = {"gate_proj": (E, F, D), "up_proj": (E, F, D), "down_proj": (E, D, F)}
        return ExpertWeights(*(_Stack(shape, name=name)() for name, shape in shapes.items()))


class _Stack(nn.Module):
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("weight", nn.initializers.normal(self.shape[-1] ** -0.5), self.shape)


def route(logits: jax.Array, moe: Experts) -> tuple[jax.Array, jax.Array]:
    """Router logits (…, E) to the weights (…, k) float32 and the numbers (…, k) int32 of the selected experts."""
    weights, selected = lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), moe.per_token)
    return weights / jnp.sum(weights, axis=-1, keepdims=True) if moe.normalise else weights, selected


def run_experts(
    x: jax.Array,
    selected: jax.Array,
    weights: jax.Array,
    experts: ExpertWeights,
    config: DecoderConfig,
    compute: Compute,
) -> jax.Array:
    """The weighted sum (B, T, D) of the selected experts' outputs: x (B, T, D), selected and weights (B, T, k)."""

    def own(x: jax.Array, selected: jax.Array, weights: jax.Array, *stacks: jax.Array) -> jax.Array:
        rows, selected, weights = (value.reshape(-1, value.shape[-1]) for value in (x, selected, weights))
        y = _run_sorted(rows, selected, weights, ExpertWeights(*stacks), config, compute)
        return y.reshape(x.shape)

    mesh = current_mesh()
    if mesh is None:
        return own(x, selected, weights, *experts).astype(x.dtype)
    # Outside of a shard_map the sort would be one of all devices' tokens, and its gather would replicate them.
    (batch,) = partition_spec(("batch",), x.shape[:1], mesh)
    (inner,) = partition_spec(("mlp",), experts.gate.shape[1:2], mesh)

    def summed(*arguments: jax.Array) -> jax.Array:
        y = own(*arguments)
        # A device's part of the inner width gives a part of each sum over it.
        return y if inner is None else lax.psum(y, inner)

    texts, first, last = PartitionSpec(batch), PartitionSpec(None, inner), PartitionSpec(None, None, inner)
    specs = (texts, texts, texts, first, first, last)
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=texts, check_vma=False)
    return mapped(x, selected, weights, *experts).astype(x.dtype)


def _run_sorted(
    x: jax.Array,
    selected: jax.Array,
    weights: jax.Array,
    experts: ExpertWeights,
    config: DecoderConfig,
    compute: Compute,
) -> jax.Array:
    """The weighted sum (N, D) float32 of the selected experts' outputs on one device: x (N, D), selected and weights
    (N, k)."""
    (N, D), k, E = x.shape, selected.shape[1], experts.gate.shape[0]
    order = jnp.argsort(selected.reshape(-1), stable=True)
    rows, sizes = x[order // k], jnp.bincount(selected.reshape(-1), length=E)

    def grouped(rows: jax.Array, sizes: jax.Array, *stacks: jax.Array) -> jax.Array:
        return grouped_mlp(rows, sizes, ExpertWeights(*stacks), config, compute)

    def tiled(rows: jax.Array, sizes: jax.Array, *stacks: jax.Array) -> jax.Array:
        return tiled_mlp(rows, sizes, ExpertWeights(*stacks), config, compute)

    # XLA computes a ragged product on a CPU as one dense product for each expert, over all rows.
    out = lax.platform_dependent(rows, sizes, *experts, cpu=tiled, default=grouped)
    # `order` says which row went where; sorting it again gives each row's place.
    each = out[jnp.argsort(order)].reshape(N, k, D).astype(jnp.float32)
    return jnp.sum(each * weights[:, :, None], axis=1)


def grouped_mlp(
    rows: jax.Array, sizes: jax.Array, experts: ExpertWeights, config: DecoderConfig, compute: Compute
) -> jax.Array:
    """Experts' outputs (M, D) for rows (M, D) sorted by expert, `sizes` (E,) for each, by ragged products."""

    def product(rows: jax.Array, stack: jax.Array) -> jax.Array:
        operands = rows.astype(compute.operands), stack.astype(compute.operands)
        return ragged_product(*operands, sizes.astype(jnp.int32)).astype(compute.dtype)

    return product(activation(config, product(rows, experts.gate)) * product(rows, experts.up), experts.down)


def tiled_mlp(
    rows: jax.Array, sizes: jax.Array, experts: ExpertWeights, config: DecoderConfig, compute: Compute
) -> jax.Array:
    """The same in tiles of b rows of one expert, one after another; each expert's rows are padded to whole tiles."""
    (M, D), E = rows.shape, sizes.shape[0]
    # At most about as many rows of padding as rows: a power of two near the rows of an expert.
    b = min(_TILE, 1 << max(0, (M // E).bit_length() - 1))
    count = (M + min(E, M) * (b - 1)) // b  # enough tiles for any sizes
    ends = jnp.cumsum(-(-sizes // b))  # tiles up to and with each expert's
    expert_of_tile = jnp.clip(jnp.searchsorted(ends, jnp.arange(count), side="right"), 0, E - 1)
    row_ends = jnp.cumsum(sizes)
    expert_of_row = jnp.searchsorted(row_ends, jnp.arange(M), side="right")
    # A row's place: its expert's first tile, and its rank among the expert's rows.
    first_place = (ends - -(-sizes // b)) * b - (row_ends - sizes)
    place = first_place[expert_of_row] + jnp.arange(M)
    tiles = jnp.zeros((count * b, D), rows.dtype).at[place].set(rows, unique_indices=True).reshape(count, b, D)

    def tile(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        x, expert = inputs

        def product(x: jax.Array, stack: jax.Array) -> jax.Array:
            weight = lax.dynamic_index_in_dim(stack, expert, keepdims=False)
            return matmul_t(x, weight, compute.operands).astype(compute.dtype)

        hidden: Any = activation(config, product(x, experts.gate)) * product(x, experts.up)
        return None, product(hidden, experts.down)

    _, out = lax.scan(tile, None, (tiles, expert_of_tile))
    return out.reshape(count * b, D)[place]

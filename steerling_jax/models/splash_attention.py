"""Attention by JAX's splash kernel for TPUs: no score matrix in memory, and tiles that no query may see are skipped.

Both attention patterns of training, block-causal and the two copies of `two_copy_attention.py`, as masks that the
kernel computes tile by tile. What a query sees depends only on its diffusion block, so each mask compares keys with one
number a query, prepared here (`q_sequence`): the kernel itself then needs no integer division, which TPUs lack.

Legend: B sequences, T positions, H heads, G key/value heads, d head size.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from steerling_jax.errors import require
from steerling_jax.parallel.mesh import current_mesh, partition_spec

_LANES = 128
_LARGEST_TILE = 512


class BlockCausalMask(masks._ComputableMask):
    """A query sees its own diffusion block and all earlier ones."""

    def __init__(self, length: int, block: int):
        super().__init__((length, length), lambda query, key: key <= query)
        self.block = block
        # The last position of the query's own block: `key <= query` is then block-causal.
        self.q_sequence = self.q_sequence // block * block + block - 1

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other)["block"] == self.block and other.shape == self.shape

    def __hash__(self) -> int:
        return hash((type(self), self.shape, self.block))


class TwoCopyMask(BlockCausalMask):
    """Of [clean, noisy], 2T positions: clean is block-causal, noisy sees its own noisy block and clean earlier ones."""

    def __init__(self, length: int, block: int):
        super().__init__(length, block)
        T = length // 2
        # For noisy queries the first position of their block instead: at least T, while those of clean queries are
        # less, so that one number tells both the copy and the block.
        self.q_sequence[T:] -= block - 1

        def sees(query: Any, key: Any) -> Any:
            noisy = query >= T
            own = noisy & (key >= query) & (key < query + block)
            # A noisy query's block begins at query − T in the clean copy; it sees the clean keys before that.
            return own | (key <= query - noisy * (T + 1))

        self.mask_function = sees


def attend_block_causal(q: jax.Array, k: jax.Array, v: jax.Array, block: int, interpret: bool = False) -> jax.Array:
    """q (B, T, H, d), k and v (B, T, G, d), T a multiple of 128, to (B, T, H, d). interpret: run the kernel without a
    TPU, slowly, as tests do."""
    return _attend(q, k, v, BlockCausalMask(q.shape[1], block), interpret)


def attend_two_copies(q: jax.Array, k: jax.Array, v: jax.Array, block: int, interpret: bool = False) -> jax.Array:
    """The same over 2T positions, the clean copy first; 2T is a multiple of 128, and T of `block`."""
    return _attend(q, k, v, TwoCopyMask(q.shape[1], block), interpret)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockCausalMask, interpret: bool) -> jax.Array:
    """Runs the kernel, which XLA cannot partition, in a `shard_map`: sequences are split over the batch axes and heads
    over `tensor`; key/value heads are repeated where there are fewer than devices."""
    length, d = q.shape[1], q.shape[3]
    require(
        length % _LANES == 0,
        f"compute.attention is 'splash', which needs a multiple of {_LANES} positions and got {length}: change the "
        "length, or use 'xla'.",
    )
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * jnp.asarray(d**-0.5, q.dtype), k, v))

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.vmap(_kernel(mask, q.shape[1], interpret))(q, k, v)

    mesh = current_mesh()
    if mesh is None:
        return jnp.swapaxes(local(q, k, v), 1, 2)
    spec = partition_spec(("batch", "heads", None, None), q.shape, mesh)
    ways = 1 if spec[1] is None else mesh.shape[spec[1]]
    k, v = (jnp.repeat(a, math.lcm(a.shape[1], ways) // a.shape[1], axis=1) for a in (k, v))
    run = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return jnp.swapaxes(run(q, k, v), 1, 2)


def _kernel(mask: BlockCausalMask, heads: int, interpret: bool) -> Any:
    """(H, T, d), (G, T, d), (G, T, d) to (H, T, d), for G that divides H."""
    tile = math.gcd(mask.shape[0], _LARGEST_TILE)
    tiles = kernel.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    every_head = masks.MultiHeadMask([mask] * heads)
    return kernel.make_splash_mha(every_head, block_sizes=tiles, head_shards=1, q_seq_shards=1, interpret=interpret)

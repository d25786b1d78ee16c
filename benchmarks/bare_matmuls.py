"""The bare matrix products of a decoding pass, a lower bound of its time; used by `decode.py` and `batches.py`.

One compiled program with the products of the weights, QKᵀ and AV over the cache, and the output projection, in the
model's shapes. Every layer has weights of its own, so they are read from memory as a model's weights are, and do not
stay in a CPU's cache.

Legend: M rows times positions, D width, F MLP width, G key/value heads, d head size, V vocabulary, W diffusion block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from steerling_jax.models.steerling.config import ModelConfig


def bare_pass(config: ModelConfig, *, rows: int, blocks: int, cached: int, logit_rows: int) -> Callable[[], float]:
    """A timer: a function that runs the matrix products of one pass once and returns the seconds.

    rows: rows of the batch. blocks: diffusion blocks per row (1 or 2). cached: cached positions that each row attends
    to. logit_rows: rows of logits per row of the batch. The program is compiled before this returns.
    """
    D, F, G, d = config.n_embd, config.mlp_width, config.kv_heads, config.head_dim
    M, V = rows * blocks * config.diff_block_size, config.vocab_size
    shapes = {"attn": (D + 2 * G * d, D), "proj": (D, D), "fc": (2 * F, D), "out": (D, F)}
    keys = iter(jax.random.split(jax.random.key(0), 6 * config.n_layers + 3))
    layers = [
        {name: 0.02 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
        | {
            name: jax.random.normal(next(keys), (rows, G, cached + blocks * config.diff_block_size, d))
            for name in ("k", "v")
        }
        for _ in range(config.n_layers)
    ]
    head = 0.02 * jax.random.normal(next(keys), (V, D))
    x = jax.random.normal(next(keys), (M, D))

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())))

    @jax.jit
    def run(layers, head, x):
        for layer in layers:
            queries = product(x, layer["attn"])[:, :D].reshape(rows, G, -1, d)
            scores = jnp.einsum("xgmd,xgsd->xgms", queries, layer["k"])
            x = x + product(jnp.einsum("xgms,xgsd->xgmd", scores, layer["v"]).reshape(M, D), layer["proj"])
            inner = product(x, layer["fc"])
            x = x + product(inner[:, :F] * inner[:, F:], layer["out"])
        return product(x[: rows * logit_rows], head)

    jax.block_until_ready(run(layers, head, x))

    def once() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(run(layers, head, x))
        return time.perf_counter() - begin

    return once


def flops(config: ModelConfig, *, rows: int, blocks: int, cached: int, logit_rows: int) -> float:
    """Floating-point operations of the products of `bare_pass` with the same arguments."""
    D, F, G, d, W = config.n_embd, config.mlp_width, config.kv_heads, config.head_dim, config.diff_block_size
    M = rows * blocks * W
    weights = config.n_layers * ((D + 2 * G * d) * D + D * D + 3 * F * D)
    attention = config.n_layers * 2 * D * (cached + blocks * W)
    return 2.0 * M * (weights + attention) + 2.0 * rows * logit_rows * config.vocab_size * D


def matmul_rate(size: int = 2048, repeats: int = 7) -> float:
    """FLOP/s of one large float32 product (size, size) by (size, size), the median of `repeats` runs."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - begin)
    return 2.0 * size**3 / statistics.median(seconds)

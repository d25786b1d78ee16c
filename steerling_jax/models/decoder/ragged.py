"""Products of rows that are sorted by expert with the weights of their experts, and their gradients.

`lax.ragged_dot_general` computes both products with the experts' weights as one kernel on a TPU, but the gradient of
the weights as a dense product of all rows with every expert: of Qwen3-30B-A3B's training step that made 24 times the
FLOPs of the mathematics. So that gradient is the kernel for it that JAX ships (megablox).

Legend: M rows, E experts, N and K their outputs and inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_TILE = 512  # rows, inputs, or outputs that the kernel computes together


def _numbers(contracted: int) -> lax.RaggedDotDimensionNumbers:
    return lax.RaggedDotDimensionNumbers((((1,), (contracted,)), ((), ())), [0], [0])


@jax.custom_vjp
def ragged_product(rows: jax.Array, stack: jax.Array, sizes: jax.Array) -> jax.Array:
    """rows (M, K), of which the first `sizes[0]` belong to expert 0 and so on, by `stack` (E, N, K): (M, N) float32.

    sizes: (E,) int32, whose sum is M. Rows and stack have one dtype.
    """
    return lax.ragged_dot_general(rows, stack, sizes, _numbers(2), preferred_element_type=jnp.dtype(jnp.float32))


def _forward(rows: jax.Array, stack: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return ragged_product(rows, stack, sizes), (rows, stack, sizes)


def _backward(kept: tuple[jax.Array, ...], outer: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, stack, sizes = kept
    outer = outer.astype(rows.dtype)
    inner = lax.ragged_dot_general(outer, stack, sizes, _numbers(1), preferred_element_type=jnp.dtype(jnp.float32))
    weights = lax.platform_dependent(outer, rows, sizes, tpu=stack_gradient, default=_stack_gradient_by_xla)
    return inner.astype(rows.dtype), weights.astype(stack.dtype), None


def stack_gradient(outer: jax.Array, rows: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
    """The gradient (E, N, K) float32 of the stack, `outer`ᵀ (N, M) by rows (M, K) within each expert's rows, by a
    kernel for TPUs; `interpret` runs it anywhere, slowly."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # Pallas is slow to import

    # The kernel takes whole tiles of rows. Those that are filled up belong to no expert.
    missing = -rows.shape[0] % _TILE
    outer, rows = (jnp.pad(value, ((0, missing), (0, 0))) for value in (outer, rows))
    return tgmm(outer.T, rows, sizes, jnp.dtype(jnp.float32), (_TILE, _TILE, _TILE), interpret=interpret)


def _stack_gradient_by_xla(outer: jax.Array, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(outer, rows, sizes, numbers, preferred_element_type=jnp.dtype(jnp.float32))


ragged_product.defvjp(_forward, _backward)

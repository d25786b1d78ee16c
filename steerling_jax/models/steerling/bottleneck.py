"""The arithmetic of a concept head: scores of all concepts, selection of the best, and the sum of their embeddings.

A head scores concepts as `clip(scale · query · keysᵀ, ±15)`, applies a sigmoid and sums the embeddings of the selected
concepts. A dictionary scores them as `query · keysᵀ + bias`, without a limit, and applies a ReLU in place of the
sigmoid. With 10⁵ concepts the scores (N, C) of a batch would be many gigabytes. So scores are streamed over blocks of
concepts with a running selection, and nothing of size (N, C) is built unless C fits in one block. A factorised head
never builds its (C, D) tables: it works on rows of rank R and multiplies by the basis last. On a mesh, each device
works on its own shard of the concepts (`concept_shards`).

Legend: N positions (B·T), D width, C concepts, K selected concepts, n concepts of a block, R rank, Q query width (D or
R), P value width (D or R), J clamped concepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling.concept_shards import merge_best, on_own_concepts, own_rows, sum_over_concepts
from steerling_jax.models.steerling.head_view import HeadView
from steerling_jax.parallel.mesh import constrain, current_mesh
from steerling_jax.parallel.row_chunks import over_chunks, sum_chunks

LOGIT_LIMIT = 15.0
LARGE_CONCEPT_THRESHOLD = 50_000  # with more concepts, the published package clamps by the sparse rule
REPORTED_WITHOUT_TOPK = 64  # concepts reported by a head that selects all of them

Carry = TypeVar("Carry")


class ConceptBlock(NamedTuple):
    """The concepts `start` () to `start + n`: their logits (N, n) float32, and `fresh` (1, n) bool, False for concepts
    that an earlier block has already covered."""

    start: jax.Array
    logits: jax.Array
    fresh: jax.Array


def dense_logits(view: HeadView, operands: str = "float32") -> jax.Array:
    """The logits of all concepts, (N, C) float32. Needs memory for all of them."""
    C = view.n_concepts
    products = matmul_t(view.query, view.keys[:C], operands)
    return _finish_logits(view, products, None if view.bias is None else view.bias[None, :C])


def _finish_logits(view: HeadView, products: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Logits from products of query and keys: scaled and clipped, or in a dictionary with their bias added."""
    if bias is not None:
        return products + bias.astype(jnp.float32)
    return jnp.clip(products * view.scale, -LOGIT_LIMIT, LOGIT_LIMIT)


def logits_of(view: HeadView, index: jax.Array, operands: str = "float32") -> jax.Array:
    """The logits (N, K) float32 of the concepts `index` (N, K), of which each position has its own."""

    def work(view: HeadView, index: jax.Array) -> jax.Array:
        at, local = own_rows(view, index, view.keys.shape[0])

        def chunk(at_chunk):
            rows = jnp.take(view.keys, at_chunk, axis=0).astype(operands)
            products = jnp.einsum("nq,nkq->nk", view.query.astype(operands), rows, preferred_element_type=jnp.float32)
            return _finish_logits(view, products, None if view.bias is None else jnp.take(view.bias, at_chunk))

        logits = over_chunks(chunk, at)
        # Each concept is on exactly one device, so the sum over devices is the logit of that one.
        return sum_over_concepts(view, logits if local is None else jnp.where(local, logits, 0.0))

    return on_own_concepts(work, view, ("query", "keys"), index)


def logits_of_ids(view: HeadView, ids: jax.Array, operands: str = "float32") -> jax.Array:
    """The logits (N, J) float32 of the concepts `ids` (J,) at all positions."""
    products = matmul_t(view.query, jnp.take(view.keys, ids, axis=0), operands)
    return _finish_logits(view, products, None if view.bias is None else jnp.take(view.bias, ids)[None, :])


def top_concepts(view: HeadView, k: int, block: int, operands: str = "float32") -> tuple[jax.Array, jax.Array]:
    """The k concepts of largest logit at each position: logits (N, k) float32 and indices (N, k) int32, best first.

    Streams over blocks of concepts with a running top k, which devices merge. Of equal logits the lower index wins.
    Differentiable in the logits.
    """
    C = view.n_concepts
    k = min(k, C)
    # On a mesh the streamed form also serves small heads: one `top_k` over sharded concepts would gather the scores.
    if block >= C and current_mesh() is None:
        logits, index = lax.top_k(dense_logits(view, operands), k)
        return logits, index.astype(jnp.int32)
    # The selection has no gradient. Computing the logits of the selected concepts again, from their rows alone, gives
    # the gradient without a backward pass through the scan over all concepts.
    query, keys, bias = lax.stop_gradient((view.query, view.keys, view.bias))
    fixed = view._replace(query=query, keys=keys, bias=bias)
    index = on_own_concepts(lambda own: _streamed_indices(own, k, block, operands), fixed, ("query", "keys"))
    return logits_of(view, index, operands), index


def scan_concept_blocks(
    step: Callable[[Carry, ConceptBlock], Carry], first: Carry, view: HeadView, block: int, operands: str
) -> Carry:
    """Folds `step` over the concepts of this device's shard, at most `block` at a time.

    The last block overlaps the one before it where `block` does not divide the concepts, because padding the table
    would copy it; `ConceptBlock.fresh` marks what is new. The backward pass computes the logits again instead of
    storing them.
    """
    C = view.n_concepts
    count = view.keys.shape[0] if view.axis else C
    block = min(block, count)

    # Without the checkpoint a scan stores the logits of every block for its backward pass: all (N, C) of them.
    @jax.checkpoint
    def body(carry: Carry, number: jax.Array) -> Carry:
        start = jnp.minimum(number * block, count - block)
        keys = lax.dynamic_slice_in_dim(view.keys, start, block)
        bias = None if view.bias is None else lax.dynamic_slice_in_dim(view.bias, start, block)
        row = start + jnp.arange(block, dtype=jnp.int32)
        fresh = row >= number * block
        if view.axis:
            fresh &= view.first + row < C  # the last device's shard includes the table's padding rows
        logits = dense_logits(view._replace(keys=keys, bias=bias), operands)
        return step(carry, ConceptBlock(view.first + start, logits, fresh[None, :]))

    numbers = jnp.arange(-(-count // block), dtype=jnp.int32)
    return lax.scan(lambda carry, number: (body(carry, number), None), first, numbers)[0]


def _streamed_indices(view: HeadView, k: int, block: int, operands: str) -> jax.Array:
    """The indices (N, k) int32 of the k largest logits, by a running top k over blocks of concepts."""
    N = view.query.shape[0]

    def step(best: tuple[jax.Array, jax.Array], new: ConceptBlock) -> tuple[jax.Array, jax.Array]:
        scores, at = lax.top_k(jnp.where(new.fresh, new.logits, -jnp.inf), min(k, new.logits.shape[1]))
        # The earlier concepts come first and `top_k` is stable, so of equal scores the lower index stays.
        scores = jnp.concatenate([best[0], scores], axis=1)
        candidates = jnp.concatenate([best[1], new.start + at.astype(jnp.int32)], axis=1)
        scores, at = lax.top_k(scores, k)
        return scores, jnp.take_along_axis(candidates, at, axis=1)

    empty = jnp.full((N, k), -jnp.inf), jnp.zeros((N, k), jnp.int32)
    return merge_best(view, *scan_concept_blocks(step, empty, view, block, operands))


def mix_concepts(view: HeadView, index: jax.Array, weights: jax.Array, block: int, compute: Compute) -> jax.Array:
    """The features `Σ_k weights_k · E[index_k]`, (N, D) in the compute dtype, for index and weights (N, K).

    Heads that fit in one block scatter the weights into a dense (N, C) matrix and use one matrix product, which is
    faster on matrix units; there an index of C is left out. Larger heads gather the rows of the selected concepts in
    chunks.
    """

    def work(view: HeadView, index: jax.Array, weights: jax.Array) -> jax.Array:
        rows = view.values.shape[0]
        at, local = own_rows(view, index, rows)
        if block >= view.n_concepts:
            # A shard is used with its padding rows, whose weights are 0; unsharded tables are cut to the concepts.
            width = rows if view.axis else view.n_concepts
            table = scatter_rows(at if local is None else jnp.where(local, at, width), weights, width)
            return sum_over_concepts(view, matmul_t(table, view.values[:width].T, compute.operands))

        def chunk(at_chunk, weights_chunk):
            # All indices are rows of the table; "clip" spares the bounds check of the default mode.
            rows = jnp.take(view.values, at_chunk, axis=0, mode="clip").astype(compute.operands)
            return jnp.einsum(
                "nk,nkp->np", weights_chunk.astype(compute.operands), rows, preferred_element_type=jnp.float32
            )

        own_weights = weights if local is None else jnp.where(local, weights, 0.0)
        return sum_over_concepts(view, sum_chunks(chunk, at, own_weights))

    mixed = on_own_concepts(work, view, ("values",), index, weights.astype(compute.dtype))
    return _through_basis(view, mixed, compute)


def mix_all(view: HeadView, block: int, compute: Compute) -> jax.Array:
    """The features of a head that selects all concepts, `Σ_c weight_c E_c`, (N, D), streamed over blocks."""

    def work(view: HeadView) -> jax.Array:
        def step(total: jax.Array, new: ConceptBlock) -> jax.Array:
            values = view.embeddings_of(new.start, new.logits.shape[1])
            weights = jnp.where(new.fresh, view.weights(new.logits), 0.0)  # overlapping concepts count once
            return total + matmul_t(weights, values.T, compute.operands)

        zeros = jnp.zeros((view.query.shape[0], view.values.shape[1]))
        return sum_over_concepts(view, scan_concept_blocks(step, zeros, view, block, compute.operands))

    return _through_basis(view, on_own_concepts(work, view, ("query", "keys", "values")), compute)


def embeddings(view: HeadView, ids: jax.Array) -> jax.Array:
    """The embeddings (J, D) float32 of the concepts `ids` (J,)."""
    return _expand(jnp.take(view.values, ids, axis=0), view.basis)


def embedding_sum(view: HeadView) -> jax.Array:
    """The sum of all concepts' embeddings, `Σ_c E_c`, (D,) float32."""
    return _expand(jnp.sum(view.values[: view.n_concepts].astype(jnp.float32), axis=0, keepdims=True), view.basis)[0]


def scatter_rows(index: jax.Array, values: jax.Array, width: int, fill: float = 0.0) -> jax.Array:
    """An array (N, width) of `fill`, with values (N, K) at index (N, K); an index of `width` is dropped."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jnp.full((index.shape[0], width), fill, values.dtype).at[rows, index].set(values, mode="drop")


def _expand(rows: jax.Array, basis: jax.Array | None) -> jax.Array:
    """Rows (J, P) of a value table as embeddings (J, D) float32: through the basis where the head is factorised."""
    rows = rows.astype(jnp.float32)
    return rows if basis is None else matmul_t(rows, basis.astype(jnp.float32), "float32")


def _through_basis(view: HeadView, mixed: jax.Array, compute: Compute) -> jax.Array:
    """Weighted sums (N, P) of rows of the value table as features (N, D), in the compute dtype."""
    mixed = mixed.astype(compute.dtype)
    if view.basis is None:
        return mixed
    return matmul_t(mixed, constrain(view.basis, (None, None)), compute.operands).astype(compute.dtype)

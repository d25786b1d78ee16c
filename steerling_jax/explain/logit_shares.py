"""The split of committed tokens' logits into concept shares on the device, and its combination over guided branches.

Legend: n or N committed tokens, s guidance strength, K listed concepts, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import NO_CLAMPS, RowClamps, decompose, logit_features
from steerling_jax.models.steerling.head_view import HeadSpec, discovered_spec, known_spec, view_head
from steerling_jax.models.steerling.heads import Clamps, HeadOutput

_EXACT = Compute()  # shares are summed in float32, whatever the model's compute dtype


class LogitShares(NamedTuple):
    """The fields of `Contributions` that are computed from hidden rows; the net ones are signed.

    JAX arrays inside a compiled program, NumPy arrays on the host.
    """

    known_ids: Any
    known_weights: Any
    known_contributions: Any
    discovered_ids: Any
    discovered_weights: Any
    discovered_contributions: Any
    epsilon: Any
    net_known: Any
    net_discovered: Any
    net_epsilon: Any


Reference = Literal["raw", "vocabulary", "model"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
# What is split into shares, by reference, as results and reports call it.
DESCRIPTIONS: dict[Reference, str] = {
    "raw": "raw logits",
    "vocabulary": "logits above their mean",
    "model": "log-probabilities",
}


@partial(jax.jit, static_argnums=(4, 5))
def composed_rows(
    params: Params,
    hidden: jax.Array,
    offsets: jax.Array,
    clamps: RowClamps | None,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """What the output projection reads, (N, D) float32, for hidden rows (N, D) float32; offsets (N,) as below."""
    features = logit_features(params, hidden.astype(compute.dtype), config, compute, clamps, offsets)
    return features.astype(jnp.float32)


@partial(jax.jit, static_argnums=2)
def reference_rows(params: Params, composed: jax.Array, reference: Reference) -> tuple[jax.Array, jax.Array]:
    """The vector (N, D) that is subtracted from the output row of each token, and its product with `composed`, (N,).

    composed (N, D): what the output projection reads. "raw": zeros. "vocabulary": the mean output row, whose product
    is the mean of all logits. "model": the mean row under the softmax of the logits, whose product is the mean logit
    under the model's own distribution. Both products are linear in `composed`, so shares in what remains are exact.
    """
    output = lm_head_weight(params).astype(jnp.float32)
    if reference == "raw":
        rows = jnp.zeros_like(composed)
    elif reference == "vocabulary":
        rows = jnp.broadcast_to(jnp.mean(output, axis=0, keepdims=True), composed.shape)
    else:
        rows = matmul_t(jax.nn.softmax(matmul_t(composed, output, "float32"), axis=-1), output.T, "float32")
    return rows, jnp.sum(rows * composed, axis=-1)


@partial(jax.jit, static_argnums=(6, 7))
def logit_shares(
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    subtracted: jax.Array,
    offsets: jax.Array,
    clamps: RowClamps | None,
    config: ModelConfig,
    compute: Compute,
) -> LogitShares:
    """Shares of the logits of tokens (N,) committed from hidden rows (N, D) float32.

    subtracted (N, D): from the tokens' output rows, see `reference_rows`.
    offsets (N,): positions counted from the end of the prompt, which select the clamps of a row. The heads run in the
    model's compute dtype, because their choice of concepts has to be that of generation; products are in float32.
    """
    concept = config.concept
    assert concept is not None
    rows = hidden.astype(compute.dtype)
    target = jnp.take(lm_head_weight(params), tokens, axis=0).astype(jnp.float32) - subtracted
    at_rows = NO_CLAMPS if clamps is None else clamps.at(offsets)
    parts = decompose(params, rows, config=config, compute=compute, clamps=at_rows)
    known = _listed(params["known_head"], parts.known, at_rows.known, known_spec(concept), target)
    nothing = jnp.zeros((len(tokens), 0))
    discovered = (nothing.astype(jnp.int32), nothing, nothing, jnp.zeros_like(target))
    spec = discovered_spec(concept)
    if parts.discovered is not None and spec is not None:
        discovered = _listed(params["unknown_head"], parts.discovered, at_rows.discovered, spec, target)
    whole = parts.composed.astype(jnp.float32)
    k_hat = parts.known.features.astype(jnp.float32)
    u_hat = jnp.zeros_like(k_hat) if parts.discovered is None else parts.discovered.features.astype(jnp.float32)

    def along(vectors: jax.Array) -> jax.Array:
        """The logit that vectors (N, D) add to each row's token."""
        return jnp.sum(vectors * target, axis=-1)

    return LogitShares(
        *known[:3],
        *discovered[:3],
        epsilon=along(whole - known[3] - discovered[3]),
        net_known=along(k_hat),
        net_discovered=along(u_hat),
        net_epsilon=along(whole - k_hat - u_hat),
    )


def _listed(
    params: Params, head: HeadOutput, clamps: Clamps | None, spec: HeadSpec, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The listed concepts' ids (−1 for none), weights and contributions (N, K), and the sum of their vectors (N, D).

    Listed are the head's reported top k and the clamped concepts. target (N, D): the tokens' rows of lm_head.
    """
    view = view_head(params, spec, _EXACT, target)  # only its tables are used
    parts = [(head.topk_indices, head.topk_weights)]
    used = jnp.ones(head.topk_indices.shape, bool)
    if clamps is not None:
        # A clamped concept has the clamp's weight, whether the head lists it or not. It gets a slot of its own, and
        # the slot in which the head lists it is emptied, so that no concept counts twice.
        (ids, weights), active = parts[0], clamps.positions[:, None]
        clamped = jnp.broadcast_to(clamps.ids[None, :], (len(ids), clamps.ids.shape[0]))
        replaced = active & (ids[:, :, None] == clamped[:, None, :]).any(axis=-1)
        parts = [(ids, jnp.where(replaced, 0.0, weights)), (clamped, jnp.where(active, clamps.values[None, :], 0.0))]
        used = jnp.concatenate([~replaced, jnp.broadcast_to(active, clamped.shape)], axis=1)
    ids, weights = (jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    # For a factorised head E_c = basis · coef_c, so E_c · target = coef_c · (basisᵀ · target): the target is projected
    # once, and rows of the small rank are gathered in place of rows of the width.
    query = target if view.basis is None else matmul_t(target, view.basis.T, "float32")

    def products(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, q = row
        return jnp.take(view.values, index, axis=0).astype(jnp.float32) @ q

    # Row by row: all N · K gathered vectors at once would be the largest array of the program.
    contributions = weights * jax.lax.map(products, (ids, query))
    vectors = jnp.zeros_like(target)
    for part in parts:
        vectors = vectors + bn.mix_concepts(view, *part, spec.block, _EXACT)
    return jnp.where(used, ids, -1), weights, contributions, vectors


def combine_branches(conditional: LogitShares, unconditional: LogitShares, guidance: float) -> LogitShares:
    """Every share as (1 + guidance) · conditional − guidance · unconditional."""
    s = np.float32(guidance)
    known, discovered = (
        _combine_concepts(conditional[first : first + 3], unconditional[first : first + 3], s) for first in (0, 3)
    )
    rest = ((1 + s) * c - s * u for c, u in zip(conditional[6:], unconditional[6:], strict=True))
    return LogitShares(*known, *discovered, *rest)


def _combine_concepts(conditional: Any, unconditional: Any, s: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, weights and contributions (n, 2K) of both branches' (n, K) combined.

    A concept that both branches list is summed in its conditional slot; the second K slots are for those that only the
    unconditional branch lists.
    """
    (ids, *values), (other_ids, *other_values) = conditional, unconditional
    same = other_ids[:, :, None] == ids[:, None, :]
    only_other = ~same.any(axis=2)
    weights, contributions = (
        np.concatenate([(1 + s) * a - s * np.einsum("nij,ni->nj", same, b), np.where(only_other, -s * b, 0.0)], axis=1)
        for a, b in zip(values, other_values, strict=True)
    )
    combined = np.concatenate([ids, np.where(only_other, other_ids, -1)], axis=1)
    return combined, weights.astype(np.float32), contributions.astype(np.float32)

"""The split of committed tokens' logits into concept shares on the device, and its combination over guided branches.

Legend: n or N committed tokens, s guidance strength, K listed concepts, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import NO_CLAMPS, RowClamps, decompose
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


@partial(jax.jit, static_argnums=(5, 6))
def shares_of(
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    offsets: jax.Array,
    clamps: RowClamps | None,
    config: ModelConfig,
    compute: Compute,
) -> LogitShares:
    """hidden (N, D) float32, tokens and offsets after the prompt (N,) to shares: heads in the model's arithmetic,
    products in float32."""
    concept = config.concept
    assert concept is not None
    rows = hidden.astype(compute.dtype)
    target = jnp.take(lm_head_weight(params), tokens, axis=0).astype(jnp.float32)
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
    """The reported concepts, and those clamped: ids (−1 for none), weights and contributions (N, K), and the sum of
    their vectors (N, D).

    A factorised head takes the target through its basis, so that only rank-wide rows are gathered.
    """
    view = view_head(params, spec, _EXACT, target)  # only its tables are used
    parts = [(head.topk_indices, jax.nn.sigmoid(head.topk_logits))]
    there = jnp.ones(head.topk_indices.shape, bool)
    if clamps is not None:  # in place of what the head says of them, listed or not
        (ids, weights), here = parts[0], clamps.positions[:, None]
        own = jnp.broadcast_to(clamps.ids[None, :], (len(ids), clamps.ids.shape[0]))
        replaced = here & (ids[:, :, None] == own[:, None, :]).any(axis=-1)
        parts = [(ids, jnp.where(replaced, 0.0, weights)), (own, jnp.where(here, clamps.values[None, :], 0.0))]
        there = jnp.concatenate([~replaced, jnp.broadcast_to(here, own.shape)], axis=1)
    ids, weights = (jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    query = target if view.basis is None else matmul_t(target, view.basis.T, "float32")

    def dots(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, q = row
        return jnp.take(view.values, index, axis=0).astype(jnp.float32) @ q

    contributions = weights * jax.lax.map(dots, (ids, query))
    vectors = jnp.zeros_like(target)
    for part in parts:
        vectors = vectors + bn.mix_concepts(view, *part, spec.block, _EXACT)
    return jnp.where(there, ids, -1), weights, contributions, vectors


def guided(conditional: LogitShares, unconditional: LogitShares, guidance: float) -> LogitShares:
    """Every share as (1 + guidance) · conditional − guidance · unconditional."""
    s = np.float32(guidance)
    known, discovered = (
        _united(conditional[first : first + 3], unconditional[first : first + 3], s) for first in (0, 3)
    )
    rest = ((1 + s) * c - s * u for c, u in zip(conditional[6:], unconditional[6:], strict=True))
    return LogitShares(*known, *discovered, *rest)


def _united(conditional: Any, unconditional: Any, s: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, weights and contributions (n, 2K) of both branches' (n, K) combined.

    A concept that both branches list is summed in its conditional slot; the second K slots are for those that only the
    unconditional branch lists.
    """
    (ids, *mine), (other_ids, *others) = conditional, unconditional
    same = other_ids[:, :, None] == ids[:, None, :]
    alone = ~same.any(axis=2)
    weights, contributions = (
        np.concatenate([(1 + s) * a - s * np.einsum("nij,ni->nj", same, b), np.where(alone, -s * b, 0.0)], axis=1)
        for a, b in zip(mine, others, strict=True)
    )
    united = np.concatenate([ids, np.where(alone, other_ids, -1)], axis=1)
    return united, weights.astype(np.float32), contributions.astype(np.float32)

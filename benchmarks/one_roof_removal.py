"""What removing a concept or a feature from a position costs its token, beside others of the same length.

Everything is removed where the logits are made: a concept from the sum that the output projection reads, a feature from
the last block's output, which only the final norm, the concept heads and the output projection follow. So a position's
row decides its cost. Legend: N positions, D width, K concepts or features of a position.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.encoding import encode_rows
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.heads import concept_embeddings, head_spec
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, decompose, logit_features
from steerling_jax.models.steerling.layers import Norm

KINDS = ("known", "discovered", "feature")
POSITIONS = 400  # with a label, and as many without it
CONTROLS = ("own", "other", "random")


def removal(
    bundle: Bundle,
    autoencoder: Autoencoder,
    rows: np.ndarray,
    tokens: np.ndarray,
    labelled: np.ndarray,
    chosen: tuple[int, int, int],
    seed: int,
) -> dict[str, Any]:
    """The mean cost in nats of each removal, at positions whose chunk has a label and at others.

    rows (N, D): the last block's output. tokens (N,). labelled (N,) bool: which have it. chosen: the known concept, the
    discovered one and the feature.
    """
    rng = np.random.default_rng(seed)
    figures: dict[str, Any] = {}
    for place, where in (("with", labelled), ("without", ~labelled)):
        found = np.flatnonzero(where)
        drawn = rng.choice(found, POSITIONS, replace=len(found) < POSITIONS)
        costs, lengths = jax.device_get(
            removal_costs(bundle.params, autoencoder.weights, rows[drawn], tokens[drawn],
                          jnp.asarray(chosen, jnp.int32), jax.random.key(seed), config=bundle.config,
                          compute=bundle.compute)
        )  # fmt: skip
        figures[place] = {
            kind: {name: float(costs[i, j].mean()) for j, name in enumerate(CONTROLS)}
            | {"active": float((lengths[i] > 0).mean()), "length": float(lengths[i].mean())}
            for i, kind in enumerate(KINDS)
        }
    return figures


@partial(jax.jit, static_argnames=("config", "compute"))
def removal_costs(
    params: Params,
    weights: Weights,
    rows: jax.Array,
    tokens: jax.Array,
    chosen: jax.Array,
    key: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """Costs (3, 3, N) in nats, kinds by controls, and the removed lengths (3, N) as shares of the rows'.

    rows (N, D): the last block's output. chosen (3,): the known concept, the discovered one and the feature. Controls:
    the chosen one; at each position the discovered concept, or the feature, whose part is most nearly as long; and a
    random direction of that length, the same at all positions.
    """
    hidden = final_norm(params, rows.astype(compute.dtype), config)
    parts = decompose(params, hidden, config=config, compute=compute)
    composed = logit_features(params, hidden, config, compute).astype(jnp.float32)
    plain = cross_entropy(params, composed.astype(compute.dtype), tokens, compute)
    assert parts.discovered is not None
    tables = {
        head: concept_embeddings(params, jnp.arange(head_spec(config, head).n_concepts), head=head, config=config,
                                 compute=compute)
        for head in ("known", "discovered")
    }  # fmt: skip
    values, indices = encode_rows(weights, rows.astype(jnp.float32), weights.settings.k or 0)
    listed = (
        (parts.known.topk_weights, parts.known.topk_indices, tables["known"]),
        (parts.discovered.topk_weights, parts.discovered.topk_indices, tables["discovered"]),
        (values, indices, weights.W_dec.astype(jnp.float32)),
    )
    others = (listed[1], listed[1], listed[2])

    def cost(kind: int, removed: jax.Array) -> jax.Array:
        features = composed - removed
        if kind == 2:
            features = logit_features(
                params, final_norm(params, (rows - removed).astype(compute.dtype), config), config, compute
            )
        return cross_entropy(params, features.astype(compute.dtype), tokens, compute) - plain

    costs, lengths = [], []
    for kind, (own, other) in enumerate(zip(listed, others, strict=True)):
        weight = jnp.sum(jnp.where(own[1] == chosen[kind], own[0], 0.0), axis=1)
        part = weight[:, None] * own[2][chosen[kind]][None]
        length = jnp.linalg.norm(part, axis=1)
        unit = jax.random.normal(jax.random.fold_in(key, kind), part.shape[1:])
        random = length[:, None] * (unit / jnp.linalg.norm(unit))[None]
        spared = (other[1] != chosen[kind]) | (kind == 0)  # the chosen one is no control for itself
        alike = nearest_part(*other, length, spared)
        costs.append(jnp.stack([cost(kind, removed) for removed in (part, alike, random)]))
        lengths.append(length / jnp.linalg.norm(rows if kind == 2 else composed, axis=1))
    return jnp.stack(costs), jnp.stack(lengths)


def nearest_part(
    values: jax.Array, indices: jax.Array, table: jax.Array, length: jax.Array, spared: jax.Array
) -> jax.Array:
    """At each position the part (N, D) of the one of the listed (N, K) whose part is most nearly `length` (N,) long;
    0 where that is 0.

    table (J, D): the directions of all. spared (N, K) bool: which may be taken.
    """
    lengths = jnp.abs(values) * jnp.take(jnp.linalg.norm(table, axis=1), indices)
    distance = jnp.where(spared, jnp.abs(lengths - length[:, None]), jnp.inf)
    nearest = jnp.argmin(distance, axis=1)[:, None]
    weight = jnp.where(length > 0, jnp.take_along_axis(values, nearest, axis=1)[:, 0], 0.0)
    return weight[:, None] * table[jnp.take_along_axis(indices, nearest, axis=1)[:, 0]]


def final_norm(params: Params, rows: jax.Array, config: ModelConfig) -> jax.Array:
    result = Norm(config).apply({"params": params["ln_f"]}, rows)
    assert isinstance(result, jax.Array)
    return result

"""The dictionary of discovered concepts: embeddings of length 1, and initial values from hidden rows.

The dictionary is a TopK sparse autoencoder (Gao et al. 2024, Scaling and evaluating sparse autoencoders) inside the
model: `û = Σ_c z_c E_c` with `z = TopK(relu(h · keysᵀ + bias))`. The embeddings have length 1, so that z_c is the
length of what concept c adds, and training cannot shrink the weights by growing the embeddings.

Legend: N rows, D width, C concepts, Cp rows of a table, R rank, K selected concepts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.geometric_median import geometric_median
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import discovered_spec, view_head

_EXACT = Compute()


def embedding_table(head: Params) -> str:
    """The name of the table (Cp, D) or (Cp, R) whose rows determine the lengths of the embeddings."""
    return "embedding_coef" if "embedding_coef" in head else "concept_embedding"


def unit_rows(head: Params) -> jax.Array:
    """The rows of the embedding table, scaled so that every embedding has length 1.

    A factorised embedding is `coef · basisᵀ`, whose squared length is `coef · (basisᵀ basis) · coefᵀ`; the (Cp, D)
    table is not built.
    """
    table = head[embedding_table(head)]["weight"].astype(jnp.float32)
    gauged = table
    if "embedding_basis" in head:
        basis = head["embedding_basis"]["weight"].astype(jnp.float32)
        gauged = table @ (basis.T @ basis)
    square = jnp.sum(table * gauged, axis=1, keepdims=True)
    return table * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def without_radial(head: Params, gradient: jax.Array) -> jax.Array:
    """A gradient of the embedding table without the part along each row, which only changes the embedding's length."""
    table = head[embedding_table(head)]["weight"]
    along = jnp.sum(gradient * table, axis=1, keepdims=True)
    return gradient - table * (along / jnp.maximum(jnp.sum(table * table, axis=1, keepdims=True), 1e-24))


def dictionary_from_rows(
    params: Params, rows: jax.Array, weight: jax.Array, key: jax.Array, *, config: ModelConfig
) -> Params:
    """`params` with a new dictionary that fits hidden rows (N, D) float32 with the weights (N,), 0 for a filler.

    The offset is the rows' geometric median m. Embeddings are random directions with the rows' covariance; the keys are
    the embeddings (tied at the start), and the biases make the logits `s · E_c · (h − m)`. The factor s is the one with
    which the selected concepts fit the rows best in squares: with many correlated concepts the plain sum overshoots.
    """
    assert config.concept is not None
    spec = discovered_spec(config.concept)
    assert spec is not None
    rows = rows.astype(jnp.float32)
    middle = geometric_median(rows, weight)
    centred = rows - middle[None, :]
    covariance = (centred * weight[:, None]).T @ centred / jnp.maximum(jnp.sum(weight), 1.0)
    values, vectors = jnp.linalg.eigh(covariance)  # ascending
    rank = config.n_embd if spec.rank is None else min(spec.rank, config.n_embd)
    scale = jnp.sqrt(jnp.maximum(values[-rank:], 0.0))
    basis = vectors[:, -rank:]
    drawn = jax.random.normal(key, (spec.rows, rank)) * scale[None, :]
    head: dict[str, Any] = dict(params["unknown_head"])
    if spec.rank is None:
        head["concept_embedding"] = {"weight": drawn @ basis.T}
        table, keys = "concept_embedding", "concept_predictor"
    else:
        # A rank above the width adds columns that start at 0.
        wider = ((0, 0), (0, spec.rank - rank))
        head["embedding_basis"] = {"weight": jnp.pad(basis, wider)}
        head["predictor_down"] = {"weight": jnp.pad(basis, wider).T}
        head["embedding_coef"] = {"weight": jnp.pad(drawn, wider)}
        table, keys = "embedding_coef", "predictor_up"
    head[table] = {"weight": unit_rows(head)}
    towards = middle if spec.rank is None else middle @ head["embedding_basis"]["weight"]
    unscaled = {"weight": head[table]["weight"], "bias": -head[table]["weight"] @ towards}
    if spec.offset:
        head["offset"] = {"bias": middle}
    factor = _best_factor(head | {keys: unscaled}, centred, weight, spec, rows)
    head[keys] = jax.tree.map(lambda leaf: factor * leaf, unscaled)
    return {**params, "unknown_head": head}


def _best_factor(head: Params, centred: jax.Array, weight: jax.Array, spec: Any, rows: jax.Array) -> jax.Array:
    """The factor s () that minimises `Σ weight ‖centred − s · û‖²` for the head's features û of the rows."""
    view = view_head(head, spec, _EXACT, rows)
    logits, index = bn.top_concepts(view, spec.topk_features, spec.block)
    features = bn.mix_concepts(view, index, view.weights(logits), spec.block, _EXACT)
    along = jnp.sum(weight[:, None] * features * centred)
    return jnp.maximum(along, 0.0) / jnp.maximum(jnp.sum(weight[:, None] * features * features), 1e-12)

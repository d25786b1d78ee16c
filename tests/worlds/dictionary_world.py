"""A small strict model, whose discovered concepts are a dictionary, and the sums behind its logits in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ConceptConfig, DictionaryConfig, ModelConfig
from steerling_jax.models.steerling.dictionary import embedding_table, unit_rows
from steerling_jax.models.steerling.model import init_params
from tests.worlds import labelled_batch

CONCEPT = ConceptConfig(
    n_concepts=6,
    n_unknown_concepts=21,
    concept_dim=16,
    topk_known=3,
    topk_known_features=3,
    unknown_topk=5,
    factorize_unknown=False,
    use_epsilon_correction=False,
    pad_multiple=4,
    block_size=64,
    inject_layer=1,
    dictionary=DictionaryConfig(),
)
MODEL = dataclasses.replace(labelled_batch.MODEL, concept=CONCEPT)


def changed(**fields: Any) -> ModelConfig:
    """The model with other fields of its concept configuration."""
    return dataclasses.replace(MODEL, concept=dataclasses.replace(CONCEPT, **fields))


def make_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters with features about as large as the hidden states, and with biases of either sign."""
    params = init_params(config, jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 8))
    for name in ("known_head", "unknown_head"):
        params[name] = jax.tree.map(lambda leaf: 15 * leaf, params[name])
    head = params["unknown_head"]
    for leaves in head.values():
        if "bias" in leaves:
            leaves["bias"] = 0.3 * jax.random.normal(next(keys), leaves["bias"].shape)
    head[embedding_table(head)] = {"weight": unit_rows(head)}
    return params


def tables(params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dictionary's keys (Cp, D), biases (Cp,) and embeddings (Cp, D), multiplied out, float64."""
    head = {
        name: {k: np.asarray(v, np.float64) for k, v in leaves.items()}
        for name, leaves in params["unknown_head"].items()
    }
    if "concept_predictor" in head:
        scores = head["concept_predictor"]
        return scores["weight"], scores["bias"], head["concept_embedding"]["weight"]
    keys = head["predictor_up"]["weight"] @ head["predictor_down"]["weight"]
    embeddings = head["embedding_coef"]["weight"] @ head["embedding_basis"]["weight"].T
    return keys, head["predictor_up"]["bias"], embeddings


def tokens(rows: int = 2, length: int = 24) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(3).integers(0, 20, (rows, length)), jnp.int32)

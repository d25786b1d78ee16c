"""Run by test_sharded_dictionary.py in a process of its own: a training step of a strict model, texts that it writes
with clamps, and its features with factorised tables, on a mesh of eight devices and on one. Prints how far the results
are from one device's, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, DictionaryConfig, ModelConfig
from steerling_jax.models.steerling.decompose import decompose
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, TrainState, init_state, state_shardings, update
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh
from tests.worlds.dictionary_world import make_params

# Tables with padding at their end, streamed in blocks over the shards of the concepts.
CONCEPT = ConceptConfig(
    n_concepts=13,
    n_unknown_concepts=42,
    concept_dim=16,
    topk_known=3,
    topk_known_features=3,
    unknown_topk=5,
    factorize_unknown=False,
    factorize_rank=8,
    block_size=4,
    use_epsilon_correction=False,
    dictionary=DictionaryConfig(),
)
MODEL = ModelConfig(
    n_layers=1,
    n_head=4,
    n_embd=16,
    n_kv_heads=2,
    block_size=32,
    diff_block_size=8,
    intermediate_size=32,
    vocab_size=41,
    pad_token_id=36,
    bos_token_id=37,
    eos_token_id=35,
    endofchunk_token_id=38,
    mask_token_id=39,
    concept=CONCEPT,
)
OBJECTIVE = DictionaryObjective(
    backbone="trained", diffusion=(1.0, 1.0), likeness=(1.0, 1.0), dead_after=1, most_dead=16, rows=0.75
)
RECIPE = Recipe(MODEL, 100, objective=OBJECTIVE, optimizer=OptimizerConfig(clip_norm=1e9))
GENERATION = GenerationConfig(max_new_tokens=8, use_entropy_sampling=False, temperature=0.0)


def make_batch() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    index = np.tile(np.arange(16) // 9, (8, 1))
    index[:, ::13] = -1
    return {
        "tokens": draw.integers(0, 35, (8, 16)).astype(np.int32),
        "chunk_index": index.astype(np.int32),
        "chunk_labels": draw.integers(-1, 13, (8, 2, 4)).astype(np.int32),
    }


def train(mesh: Mesh, first: TrainState) -> dict[str, np.ndarray]:
    """Metrics, the optimizer's first moments, and steps since concepts were used, after a step with dead concepts."""
    places = state_shardings(RECIPE, mesh)
    with jax.set_mesh(mesh):
        state, batch = jax.device_put(first, places), jax.device_put(make_batch(), batch_sharding(mesh))
        step = jax.jit(partial(update, key=jax.random.key(0), recipe=RECIPE), out_shardings=(places, None))
        state, metrics = step(state, batch)
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    moments = {name.partition("mu/")[2]: leaf for name, leaf in named if "mu/" in name}
    assert "unknown_head/concept_embedding/weight" in moments
    return jax.device_get({**metrics, **moments, "idle": state.idle})


def write(mesh: Mesh, params: Any) -> list[list[int]]:
    """Four texts written at once."""
    with jax.set_mesh(mesh):
        decoder = Decoder(jax.device_put(params, param_shardings(MODEL, mesh)), config=MODEL, compute=Compute())
        for length in range(4, 8):
            decoder.submit(Request(np.arange(length, dtype=np.int32), GENERATION, seed=0))
        texts: dict[int, list[int]] = {}
        while decoder.busy:
            texts |= {ticket: event.tokens.tolist() for ticket, event in decoder.advance() if isinstance(event, Trace)}
    return [texts[ticket] for ticket in sorted(texts)]


def factorised(mesh: Mesh) -> np.ndarray:
    """The rows that the output projection reads, (16, D), with tables of rank 8."""
    config = dataclasses.replace(MODEL, concept=dataclasses.replace(CONCEPT, factorize_unknown=True))

    def features(params: Any, hidden: jax.Array) -> jax.Array:
        return decompose(params, hidden, config=config, compute=Compute()).composed

    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(config), param_shardings(config, mesh))
        return jax.device_get(jax.jit(features)(params, jax.random.normal(jax.random.key(2), (16, 16))))


def difference(found: Any, expected: Any) -> float:
    """The largest difference in units of the largest expected value."""
    return float(np.max(np.abs(np.asarray(found) - expected)) / max(np.max(np.abs(expected)), 1e-9))


def main() -> None:
    one, eight = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]), make_mesh(MeshShape(2, 2, 2))
    params = make_params(MODEL)
    first = init_state(RECIPE, jax.random.key(1))
    first = first.replace(params=params, idle=first.idle.at[::3].set(5))  # type: ignore[attr-defined]
    alone, together = train(one, first), train(eight, first)
    report = {name: difference(together[name], value) for name, value in alone.items()}
    report["factorised features"] = difference(factorised(eight), factorised(one))
    texts = write(one, params)
    summary = {
        "differences": report,
        "dead": float(alone["dead"]),
        "texts": texts,
        "same": write(eight, params) == texts,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

"""Run by test_dictionary_meshes.py in a process of its own: a training step of a strict model, and its features with
clamps, on meshes of eight devices and on one. Prints how far the results are from one device's, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, DictionaryConfig, ModelConfig
from steerling_jax.models.steerling.decompose import HeadClamps, decompose
from steerling_jax.models.steerling.heads import Clamps
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, init_state, state_shardings, update
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh

# Tables with padding at their end, streamed in blocks; full and factorised.
CONCEPT = ConceptConfig(
    n_concepts=61,
    n_unknown_concepts=130,
    concept_dim=32,
    topk_known=4,
    topk_known_features=4,
    unknown_topk=9,
    factorize_unknown=False,
    factorize_rank=8,
    block_size=16,
    use_epsilon_correction=False,
    dictionary=DictionaryConfig(),
)
MODEL = ModelConfig(
    n_layers=1,
    n_head=8,
    n_embd=32,
    n_kv_heads=4,
    block_size=64,
    diff_block_size=8,
    intermediate_size=96,
    vocab_size=101,
    pad_token_id=96,
    bos_token_id=97,
    eos_token_id=95,
    endofchunk_token_id=98,
    mask_token_id=99,
    concept=CONCEPT,
)
OBJECTIVE = DictionaryObjective(
    backbone="trained", diffusion=(1.0, 1.0), likeness=(1.0, 1.0), dead_after=1, most_dead=40, rows=0.75
)


def recipe(factorised: bool) -> Recipe:
    model = dataclasses.replace(MODEL, concept=dataclasses.replace(CONCEPT, factorize_unknown=factorised))
    return Recipe(model, 100, objective=OBJECTIVE, optimizer=OptimizerConfig(clip_norm=1e9))


def make_batch() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    index = np.tile(np.arange(16) // 9, (8, 1))
    index[:, ::13] = -1
    return {
        "tokens": draw.integers(0, 95, (8, 16)).astype(np.int32),
        "chunk_index": index.astype(np.int32),
        "chunk_labels": draw.integers(-1, 61, (8, 2, 4)).astype(np.int32),
    }


def results(mesh: Mesh, run: Recipe, first: Any) -> dict[str, np.ndarray]:
    """Metrics and first moments of a step with dead concepts, and the rows that the output projection reads."""
    places = state_shardings(run, mesh)

    def features(params: Any, hidden: jax.Array) -> jax.Array:
        at = jnp.arange(len(hidden)) % 2 == 0
        clamps = HeadClamps(discovered=Clamps(jnp.array([3, 129]), jnp.array([0.0, 2.0]), at))
        return decompose(params, hidden, config=run.model, compute=Compute(), clamps=clamps).composed

    with jax.set_mesh(mesh):
        state, batch = jax.device_put(first, places), jax.device_put(make_batch(), batch_sharding(mesh))
        step = jax.jit(partial(update, key=jax.random.key(0), recipe=run), out_shardings=(places, None))
        hidden = jax.random.normal(jax.random.key(2), (16, 32))
        composed = jax.jit(features)(state.params, hidden)
        state, metrics = step(state, batch)
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    moments = {name.partition("mu/")[2]: leaf for name, leaf in named if "mu/" in name}
    return jax.device_get({**metrics, **moments, "composed": composed, "idle": state.idle})


def furthest(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference in units of a result's largest value, and whose it is."""
    return max(
        (float(np.max(np.abs(found[name] - value)) / max(np.max(np.abs(value)), 1e-9)), name)
        for name, value in expected.items()
    )


def main() -> None:
    report = {}
    for factorised in (False, True):
        run = recipe(factorised)
        first = init_state(run, jax.random.key(1))
        first = first.replace(idle=first.idle.at[::3].set(5))  # type: ignore[attr-defined]
        alone = results(make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]), run, first)
        assert alone["dead"] > 0.3
        for sizes in ((2, 2, 2), (1, 1, 8)):
            report[f"{sizes} factorised={factorised}"] = furthest(
                results(make_mesh(MeshShape(*sizes)), run, first), alone
            )
    print(json.dumps(report))


if __name__ == "__main__":
    main()

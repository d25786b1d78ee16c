"""Run by test_sharding.py in a process of its own: a training step and a generation on every mesh of eight devices, and
on one device. Prints what the compiled programs exchange, and how far the results are from one device's, as JSON.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.attention import attend, block_causal_mask
from steerling_jax.models.compute import Compute
from steerling_jax.models.splash_attention import attend_block_causal
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.decompose import decompose
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.training_step import Recipe, TrainState, init_state, state_shardings, update
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh

# Sizes that tell: fewer key/value heads than devices, an odd vocabulary, tables with padding at their end.
CONFIG = ModelConfig(
    n_layers=2,
    n_head=8,
    n_embd=64,
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
    concept=ConceptConfig(
        n_concepts=61,
        n_unknown_concepts=130,
        concept_dim=64,
        topk_known=4,
        topk_known_features=4,
        unknown_topk=9,
        factorize_rank=16,
        block_size=16,
    ),
)
RECIPE = Recipe(
    CONFIG,
    100,
    objective=ObjectiveConfig(rows=0.75, epsilon_dropout=(0.5, 0.5)),
    optimizer=OptimizerConfig(clip_norm=1e9),
)
GENERATION = GenerationConfig(max_new_tokens=16, use_entropy_sampling=False, temperature=0.0)
SHAPES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]
COLLECTIVE = re.compile(r" = (.+?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\(")
Counts = dict[str, int]


def collectives(compiled: jax.stages.Compiled) -> Counts:
    """How many arrays come out of collectives, by "kind type[shape]". A loop counts once; scalars do not."""
    found = collections.Counter(
        f"{kind} {array}"
        for results, kind in COLLECTIVE.findall(compiled.as_text() or "")
        for array in re.findall(r"\w+\[[\d,]+\]", results)
    )
    return dict(sorted(found.items()))


def make_batch() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    index = np.tile(np.arange(16) // 9, (8, 1))
    index[:, ::13] = -1
    return {
        "tokens": draw.integers(0, 95, (8, 16)).astype(np.int32),
        "chunk_index": index.astype(np.int32),
        "chunk_labels": draw.integers(-1, 61, (8, 2, 4)).astype(np.int32),
    }


def train(mesh: Mesh, first: TrainState) -> tuple[dict[str, np.ndarray], Counts]:
    """A step's metrics and the optimizer's first moments, which are a tenth of the gradients; what it exchanges."""
    places = state_shardings(RECIPE, mesh)
    with jax.set_mesh(mesh):
        state, batch = jax.device_put(first, places), jax.device_put(make_batch(), batch_sharding(mesh))
        step = jax.jit(partial(update, key=jax.random.key(0), recipe=RECIPE), out_shardings=(places, None))
        compiled = step.lower(state, batch).compile()
    state, metrics = compiled(state, batch)
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    gradients = {name.partition("mu/")[2]: leaf for name, leaf in named if "mu/" in name}
    assert len(gradients) == len(jax.tree.leaves(state.params))
    return jax.device_get({**metrics, **gradients}), collectives(compiled)


def generate(mesh: Mesh, first: TrainState) -> tuple[list[list[int]], Counts]:
    """Eight texts written at once by the model's first layer, and what the decoding loop exchanges."""
    config = dataclasses.replace(CONFIG, n_layers=1)
    params = {**first.params, "blocks": jax.tree.map(lambda leaf: leaf[:1], first.params["blocks"])}
    exchanged: list[Counts] = []

    def watched(*args: Any, **settings: Any) -> Any:
        compiled = block_decoding.decode_rows.lower(*args, **settings).compile()
        exchanged.append(collectives(compiled))
        return compiled(*args)

    lane.block_loop = type("Watched", (), {**vars(block_decoding), "decode_rows": staticmethod(watched)})
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(config, mesh))
        decoder = Decoder(params, config=config, compute=Compute())
        for length in range(4, 12):
            decoder.submit(Request(np.arange(length, dtype=np.int32), GENERATION, seed=0))
        texts: dict[int, list[int]] = {}
        while decoder.busy:
            texts |= {ticket: event.tokens.tolist() for ticket, event in decoder.advance() if isinstance(event, Trace)}
    assert len(texts) == 8
    return [texts[ticket] for ticket in sorted(texts)], exchanged[0]


def splash(mesh: Mesh) -> float:
    """How far the TPU kernel, interpreted, is from the reference where heads are split and key/value heads repeated."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 128, heads, 16)) for i, heads in enumerate((4, 2, 2)))
    at = jax.numpy.arange(128)
    wanted = attend(q, k, v, block_causal_mask(at, at, 24))
    with jax.set_mesh(mesh):
        found = jax.jit(partial(attend_block_causal, block=24, interpret=True))(q, k, v)
    return float(np.max(np.abs(np.asarray(found) - np.asarray(wanted))))


def odd_rows(first: TrainState) -> float:
    """How far the composed states of 5 positions are from one device's, on a mesh whose 8 devices cannot share them."""
    rows = jax.random.normal(jax.random.key(5), (5, CONFIG.n_embd))

    def composed(params: Any) -> np.ndarray:
        return np.asarray(decompose(params, rows, config=CONFIG, compute=Compute()).composed)

    mesh = make_mesh(MeshShape(2, 2, 2))
    with jax.set_mesh(mesh):
        sharded = composed(jax.device_put(first.params, param_shardings(CONFIG, mesh)))
    return float(np.max(np.abs(sharded - composed(first.params))))


def furthest(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each result from what is wanted, in units of its largest value."""
    return {
        name: float(np.max(np.abs(found[name] - value)) / max(np.max(np.abs(value)), 1e-9))
        for name, value in wanted.items()
    }


def main() -> None:
    first = init_state(RECIPE, jax.random.key(1))
    alone = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    (step, in_step), (texts, in_text) = train(alone, first), generate(alone, first)
    assert not in_step
    assert not in_text
    meshes = {}
    for sizes in SHAPES:
        mesh = make_mesh(MeshShape(*sizes))
        found, exchanged = train(mesh, first)
        here: dict[str, Any] = {"differences": furthest(found, step), "train": exchanged}
        written, here["decode"] = generate(mesh, first)
        here["same texts"] = written == texts
        meshes["{}×{}×{}".format(*sizes)] = here
    figures = {"splash": splash(make_mesh(MeshShape(1, 2, 4))), "odd rows": odd_rows(first), "meshes": meshes}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

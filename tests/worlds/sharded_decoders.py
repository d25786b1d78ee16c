"""Golden decoders on meshes of eight devices: prints as JSON how far logits, gradients, likelihoods and the metrics of
training steps are from those of one device, and whether greedy texts are the same.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import steerling_jax as sj
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.training_step import Recipe, init_state, state_shardings, update
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh

GOLDEN = Path(__file__).parents[1] / "golden_decoders"
TEXTS = [list(range(1, 2 + 3 * number)) for number in range(8)]
GREEDY = sj.GenerationConfig(max_new_tokens=12, temperature=0.0)
MESHES = [MeshShape(data=8, fsdp=1), MeshShape(fsdp=4, tensor=2), MeshShape(data=2, fsdp=1, tensor=4)]


def main() -> None:
    differences, same_texts = {}, {}
    for name in ("gemma2", "qwen3_moe", "qwen3_5"):
        bundle = sj.load(GOLDEN / name)
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 24)), jnp.int32)
        expected = jax.jit(values, static_argnames="backbone")(bundle.params, tokens, backbone=bundle.backbone)
        written, likelihoods = use(bundle)
        for shape in MESHES:
            mesh = make_mesh(shape)
            sharded = sj.load(GOLDEN / name, sharding=mesh)
            with jax.set_mesh(mesh):
                placed = jax.device_put(tokens, batch_sharding(mesh))
                found = jax.jit(values, static_argnames="backbone")(sharded.params, placed, backbone=bundle.backbone)
                texts, nats = use(sharded)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
            differences[f"{name} {shape}"] = max(difference(*pair) for pair in pairs)
            differences[f"likelihoods of {name} {shape}"] = difference(nats, likelihoods)
            same_texts[f"{name} {shape}"] = texts == written
    # Gemma 3 has seven layers of two types, the others equal layers: the loop over periods has a remainder once.
    for name in ("qwen3", "qwen3_moe", "gemma3"):
        bundle = sj.load(GOLDEN / name)
        expected = metrics_of_step(bundle, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
        for shape in MESHES:
            found = metrics_of_step(bundle, make_mesh(shape))
            differences[f"step of {name} {shape}"] = max(abs(found[key] / expected[key] - 1) for key in expected)
    print(json.dumps({"differences": differences, "same texts": same_texts}))


def use(bundle: sj.Bundle) -> tuple[list[list[int]], np.ndarray]:
    """Greedy texts of eight prompts of different lengths, written together, and the log-likelihoods of eight texts."""
    written = sj.generate_many(bundle, TEXTS, GREEDY)
    scores = sj.log_likelihoods(bundle, [(text[:1], [*text[1:], 5]) for text in TEXTS], batch_size=8)
    return [one.tokens.tolist() for one in written], np.array(scores, np.float64)


def metrics_of_step(bundle: sj.Bundle, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Loss and norm of the gradient in two updates by Muon; those of the second depend on the first update.

    On several devices layers are rematerialised, and thereby run as a loop over periods.
    """
    recipe = Recipe(
        bundle.config,
        10,
        compute=sj.Compute(remat=mesh.size > 1),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(kind="muon", warmup_steps=0),
        accumulate=1,
    )
    batch = {"tokens": np.random.default_rng(0).integers(0, 64, (8, 24)).astype(np.int32)}
    with jax.set_mesh(mesh):
        places = state_shardings(recipe, mesh)
        first = init_state(recipe, jax.random.key(0))
        state = jax.device_put(first.replace(params=bundle.params), places)  # type: ignore[attr-defined]
        step = jax.jit(partial(update, key=jax.random.key(1), recipe=recipe), out_shardings=(places, None))
        numbers = {}
        for number in range(2):
            state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
            numbers |= {f"{name} {number}": float(metrics[name]) for name in ("loss", "gradient_norm")}
    return numbers


def values(params: Any, tokens: jax.Array, *, backbone: Any) -> Any:
    """Logits, and the gradients of a loss of them."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = backbone.logits(params, backbone.run(params, backbone.embed(params, tokens)).hidden)
        scores = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, gradients


def difference(found: Any, expected: Any) -> float:
    a, b = np.asarray(found), np.asarray(expected)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-2))


if __name__ == "__main__":
    main()

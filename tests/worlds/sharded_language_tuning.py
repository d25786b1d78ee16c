"""Run by test_language_tuning.py in a process with eight devices: losses on a mesh, beside one device's.

Prints for each case [one device's, the mesh's] of the loss, the penalty and the norm of the gradient, as JSON.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import optax

from steerling_jax.models.compute import Compute
from steerling_jax.models.families import init_params, param_shardings
from steerling_jax.models.lora import LoraConfig, adapter_shardings, init_adapters, with_adapters
from steerling_jax.objectives.language_tuning import LanguageObjective, Penalty
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh
from tests.worlds.language_features import make_features
from tests.worlds.small_decoder import small_config

CONFIG, LORA, KEY = small_config(num_hidden_layers=1), LoraConfig(rank=2), jax.random.key(1)
# The penalty, and whether adapters are trained.
CASES: tuple[tuple[Penalty, bool], ...] = (("features", False), ("features", True), ("script_tokens", False))


def losses(base: Any, adapters: Any, batch: Any) -> dict[str, dict[str, jax.Array]]:
    """Figures of each case."""
    found = {}
    for penalty, with_lora in CASES:
        objective = LanguageObjective(features=make_features(layers=(0,)), penalty=penalty, weight=1.0)
        drawn = objective.draw(batch, KEY, jax.numpy.zeros(()), CONFIG)

        def loss(trained: Any, objective: Any = objective, drawn: Any = drawn, with_lora: bool = with_lora) -> Any:
            params = with_adapters(base, trained, LORA) if with_lora else trained
            return objective.loss(params, drawn, jax.numpy.zeros(()), config=CONFIG, compute=Compute())

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(adapters if with_lora else base)
        figures = {"loss": value, "penalty": metrics["penalty"], "gradient": optax.tree.norm(gradient)}
        found[f"{penalty}, {'adapters' if with_lora else 'all parameters'}"] = figures
    return found


def main() -> None:
    rng = np.random.default_rng(0)
    begin = rng.integers(2, 6, (8, 1))
    batch = {
        "tokens": rng.integers(0, 59, (8, 8)).astype(np.int32),
        "answer": np.where(np.arange(8)[None] >= begin, 0, -1).astype(np.int32),
        "language": rng.integers(0, 3, 8).astype(np.int32),
    }
    base = init_params(CONFIG, KEY)
    adapters = jax.tree.map(lambda leaf: leaf + 0.05, init_adapters(CONFIG, LORA, KEY))
    alone = jax.device_get(jax.jit(losses)(base, adapters, batch))
    mesh = make_mesh(MeshShape(2, 2, 2))
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(base, param_shardings(CONFIG, mesh)),
            jax.device_put(adapters, adapter_shardings(CONFIG, LORA, mesh)),
            jax.device_put(batch, batch_sharding(mesh)),
        )
        together = jax.device_get(jax.jit(losses)(*placed))
    pairs = jax.tree.map(lambda one, other: [float(one), float(other)], alone, together)
    print(json.dumps(pairs))


if __name__ == "__main__":
    main()

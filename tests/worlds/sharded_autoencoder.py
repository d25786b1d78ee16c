"""Run by test_training_step.py in a process with eight devices: updates on a mesh, beside the same on one device.

Prints the largest difference of each array of the state, in units of its largest value, as JSON.
"""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.sharding import state_shardings
from steerling_jax.autoencoders.training_step import AutoencoderRecipe, init_state, update
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh

# Most latents are dead after two steps, more of them than are offered.
RECIPE = AutoencoderRecipe(n_latents=256, k=3, steps=20, batch_rows=32, learning_rate=0.05, k_aux=6, max_dead=40,
                           dead_after=64)  # fmt: skip
STEPS = 6


def main() -> None:
    """Six updates with the latents over four devices and the rows over two."""
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (STEPS, 32, 12)).astype(np.float32)
    rows[:, 0] *= 40  # a row of extreme norm, which does not count
    first = init_state(RECIPE, jnp.asarray(rows[0]), jax.random.key(3))
    alone = jax.jit(partial(update, recipe=RECIPE))
    mesh = make_mesh(MeshShape(data=2, fsdp=1, tensor=4))
    one, sharded = first, jax.device_put(first, state_shardings(first, mesh))
    with jax.set_mesh(mesh):
        together = jax.jit(partial(update, recipe=RECIPE), out_shardings=(state_shardings(first, mesh), None))
    dead = 0.0
    for batch in rows:
        one, metrics = alone(one, jnp.asarray(batch))
        with jax.set_mesh(mesh):
            sharded, others = together(sharded, jax.device_put(batch, batch_sharding(mesh)))
        dead = max(dead, float(others["dead"]))
        assert abs(float(metrics["loss"]) - float(others["loss"])) < 1e-4, (metrics, others)
    found = {"dead": dead, "devices": len(sharded.trained.encoder.sharding.device_set)}
    for name in ("encoder", "decoder", "b_enc", "b_dec"):
        expected, got = (np.asarray(getattr(state.trained, name)) for state in (one, sharded))
        found[name] = float(np.abs(got - expected).max() / np.abs(expected).max())
    found["silent"] = int(np.abs(np.asarray(sharded.silent) - np.asarray(one.silent)).max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Training of one autoencoder for each of several layers of a model, from the same passes.

On a mesh, also of several processes, the model and the autoencoders are sharded. Rows are not: every process holds the
whole buffer, and a device gets its part of a batch from its own process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.metrics import Reconstruction
from steerling_jax.autoencoders.sharding import abstract_state, state_shardings
from steerling_jax.autoencoders.training_step import (
    AutoencoderRecipe,
    AutoencoderState,
    Metrics,
    init_state,
    update,
)
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Concept, unnamed
from steerling_jax.errors import require
from steerling_jax.parallel.sharding import batch_sharding, make_mesh, to_host
from steerling_jax.train.autoencoders.activations import Activations
from steerling_jax.train.autoencoders.evaluate import evaluate
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

SAMPLE = 8192  # rows from which the initial state is made

States = dict[str, AutoencoderState]  # by the layer's number, as text


def check_sizes(run: AutoencoderRun, mesh: Mesh | AbstractMesh) -> None:
    """Raises `UserError` where rows or latents cannot be shared out evenly over the devices of a mesh."""
    for name, size, devices in (
        ("batch_rows", run.recipe.batch_rows, mesh.shape["data"] * mesh.shape["fsdp"]),
        ("n_latents", run.recipe.n_latents, mesh.shape["tensor"]),
    ):
        require(
            size % devices == 0,
            f"{name} is {size}, but the mesh shards it over {devices} devices; give a multiple of {devices}.",
            name,
        )


def _update(
    state: AutoencoderState, rows: jax.Array, *, recipe: AutoencoderRecipe, mesh: Mesh | None
) -> tuple[AutoencoderState, Metrics]:
    """`update`, with the state where it was: the compiler might leave parts of it elsewhere."""
    new, metrics = update(state, rows, recipe=recipe)
    return new if mesh is None else jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics


class LayersTraining:
    """See `loop.Training`. tokens: (training, held-out), each (n,) int32."""

    def __init__(self, run: AutoencoderRun, bundle: Bundle, tokens: tuple[np.ndarray, np.ndarray]):
        self._run, self._bundle, self._held_out = run, bundle, tokens[1]
        self._activations = Activations(run, bundle, tokens[0])
        self.mesh = None if run.mesh is None else make_mesh(run.mesh)
        self._update = jax.jit(partial(_update, recipe=run.recipe, mesh=self.mesh), donate_argnums=0)
        self._features: dict[int, tuple[Concept, ...]] = {}
        self.sources = (f"{bundle.name}: layers {', '.join(map(str, run.layers))}",)

    def initial(self) -> States:
        """The state of each layer, on the devices that hold its parts."""
        sample = self._sample()
        if self.mesh is None:
            return self._initial(jax.tree.map(jnp.asarray, sample))
        shardings = jax.tree.map(lambda shape: shape.sharding, self.shapes())
        with self._on_mesh():
            return jax.jit(self._initial, out_shardings=shardings)(sample)

    def shapes(self) -> States:
        """Shapes, dtypes and shardings of the state."""
        run, width = self._run, self._bundle.backbone.width
        return {str(layer): abstract_state(run.recipe, width, self.mesh) for layer in run.layers}

    def _sample(self) -> dict[int, np.ndarray]:
        """Rows of the first batches, by layer."""
        run = self._run
        count = min(run.buffer_rows // run.recipe.batch_rows, -(-SAMPLE // run.recipe.batch_rows))
        batches = [self.batch(step) for step in range(count)]
        return {layer: np.concatenate([batch[layer] for batch in batches])[:SAMPLE] for layer in run.layers}

    def _initial(self, sample: Mapping[int, jax.Array]) -> States:
        key, run = jax.random.key(self._run.seed), self._run
        return {
            str(layer): init_state(run.recipe, sample[layer], jax.random.fold_in(key, layer), from_rows=run.from_rows)
            for layer in run.layers
        }

    def batch(self, step: int) -> dict[int, np.ndarray]:
        """The rows of a step, by layer."""
        with self._on_mesh():  # the model's parameters are sharded over it
            return self._activations.batch(step)

    def rows(self, step: int) -> int:
        """Rows of a step, the same in all."""
        return self._run.recipe.batch_rows

    def advance(self, state: States, step: int, batch: dict[int, np.ndarray]) -> tuple[States, Metrics]:
        """An update of each layer."""
        metrics = {}
        for layer in self._run.layers:
            with self._on_mesh():
                state[str(layer)], found = self._update(state[str(layer)], self._placed(batch[layer]))
            metrics |= {f"layer{layer}/{name}": value for name, value in found.items()}
        metrics["loss"] = sum(metrics[f"layer{layer}/loss"] for layer in self._run.layers) / len(self._run.layers)
        return state, metrics

    def _placed(self, rows: np.ndarray) -> jax.Array:
        """Rows of a batch, on a mesh each device with its part."""
        if self.mesh is None:
            return jnp.asarray(rows)
        return jax.make_array_from_callback(rows.shape, batch_sharding(self.mesh), lambda part: rows[part])

    def evaluate(self, state: States) -> dict[str, Any]:
        """Held-out figures by layer."""
        limits = {layer: float(state[str(layer)].limit) for layer in self._run.layers}
        autoencoders = self.result(state)
        return evaluate(
            self._run, self._bundle, autoencoders, limits, self._held_out, self._describe, on_mesh=self._on_mesh
        )

    def _describe(self, layer: int, figures: Reconstruction) -> None:
        """Keeps what the held-out text says of single features, for the export: steering has their largest latents as
        its units."""
        self._features[layer] = tuple(
            Concept(
                number,
                unnamed(number, "feature"),
                head="feature",
                is_named=False,
                density=float(density),
                largest=float(largest) or None,
            )
            for number, (density, largest) in enumerate(zip(figures.density, figures.largest, strict=True))
        )

    def _on_mesh(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def result(self, state: Mapping[str, AutoencoderState]) -> dict[int, Autoencoder]:
        """The autoencoders, by layer, each whole on one device of this process."""
        run = self._run
        trained = {layer: jax.tree.map(jnp.asarray, to_host(state[str(layer)].trained)) for layer in run.layers}
        return {
            layer: Autoencoder(
                trained[layer].weights(run.recipe.k),
                layer,
                f"{run.name}, layer {layer}",
                features=self._features.get(layer, ()),
            )
            for layer in run.layers
        }

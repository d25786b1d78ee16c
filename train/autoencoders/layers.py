"""Training of one autoencoder for each of several layers of a model, from the same passes."""

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
from steerling_jax.autoencoders.sharding import place_state
from steerling_jax.autoencoders.training_step import AutoencoderState, Metrics, init_state, update
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Concept, unnamed
from steerling_jax.errors import require
from steerling_jax.parallel.sharding import batch_sharding, make_mesh
from steerling_jax.train.autoencoders.activations import Activations
from steerling_jax.train.autoencoders.evaluate import evaluate
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

SAMPLE = 8192  # rows from which the initial bias and the limit of norms are taken

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


class LayersTraining:
    """See `loop.Training`. tokens: (training, held-out), each (n,) int32."""

    def __init__(self, run: AutoencoderRun, bundle: Bundle, tokens: tuple[np.ndarray, np.ndarray]):
        self._run, self._bundle, self._held_out = run, bundle, tokens[1]
        self._activations = Activations(run, bundle, tokens[0])
        # Activations are captured under the mesh, too: the model's parameters are sharded over it.
        self._mesh = None if run.mesh is None else make_mesh(run.mesh)
        self._update = jax.jit(partial(update, recipe=run.recipe), donate_argnums=0)
        self._features: dict[int, tuple[Concept, ...]] = {}
        self.sources = (f"{bundle.name}: layers {', '.join(map(str, run.layers))}",)

    def sample(self) -> dict[int, jax.Array]:
        """Rows of the first batch, by layer."""
        return {layer: jnp.asarray(rows[:SAMPLE]) for layer, rows in self.batch(0).items()}

    def initial(self, sample: Any) -> States:
        """The state of each layer."""
        key, recipe = jax.random.key(self._run.seed), self._run.recipe
        return {
            str(layer): init_state(recipe, sample[layer], jax.random.fold_in(key, layer)) for layer in self._run.layers
        }

    def batch(self, step: int) -> dict[int, np.ndarray]:
        """The rows of a step, by layer."""
        with self._on_mesh():
            return self._activations.batch(step)

    def rows(self, step: int) -> int:
        """Rows of a step, the same in all."""
        return self._run.recipe.batch_rows

    def advance(self, state: States, step: int, batch: dict[int, np.ndarray]) -> tuple[States, Metrics]:
        """An update of each layer."""
        metrics = {}
        for layer in self._run.layers:
            one, rows = state[str(layer)], batch[layer]
            if self._mesh is None:
                state[str(layer)], found = self._update(one, jnp.asarray(rows))
            else:
                # A state that was just initialised or restored is on one device; afterwards this moves nothing.
                one = place_state(one, self._mesh)
                with jax.set_mesh(self._mesh):
                    state[str(layer)], found = self._update(one, jax.device_put(rows, batch_sharding(self._mesh)))
            metrics |= {f"layer{layer}/{name}": value for name, value in found.items()}
        metrics["loss"] = jnp.mean(jnp.stack([metrics[f"layer{layer}/loss"] for layer in self._run.layers]))
        return state, metrics

    def evaluate(self, state: States) -> dict[str, Any]:
        """Held-out figures by layer."""
        limits = {layer: float(state[str(layer)].limit) for layer in self._run.layers}
        with self._on_mesh():
            return evaluate(self._run, self._bundle, self.result(state), limits, self._held_out, self._describe)

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
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def result(self, state: Mapping[str, AutoencoderState]) -> dict[int, Autoencoder]:
        """The autoencoders, by layer."""
        run = self._run
        return {
            layer: Autoencoder(
                state[str(layer)].trained.weights(run.recipe.k),
                layer,
                f"{run.name}, layer {layer}",
                features=self._features.get(layer, ()),
            )
            for layer in run.layers
        }

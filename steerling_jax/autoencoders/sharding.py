"""Where the state of an autoencoder's training is on a mesh: latents over `tensor`, everything else on all devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.autoencoders.training_step import AutoencoderRecipe, AutoencoderState, init_state
from steerling_jax.parallel.mesh import partition_spec


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of each array of an `AutoencoderState` (or of its shapes): arrays with an axis of all latents are
    sharded along it, where the mesh axis divides it."""
    S = state.silent.shape[0]

    def of(leaf: Any) -> NamedSharding:
        axes = ("concepts",) if leaf.ndim and leaf.shape[0] == S else ()
        return NamedSharding(mesh, partition_spec(axes, leaf.shape[:1], mesh) if axes else PartitionSpec())

    return jax.tree.map(of, state)


def abstract_state(recipe: AutoencoderRecipe, width: int, mesh: Mesh | None) -> AutoencoderState:
    """Shapes, dtypes and, on a mesh, shardings of the state on hidden rows of a width, without allocating it."""
    rows = jax.ShapeDtypeStruct((16, width), jnp.float32)
    # The key is made while shapes are traced: the devices of the mesh may not exist, and nothing could run on them.
    shapes = jax.eval_shape(lambda rows: init_state(recipe, rows, jax.random.key(0)), rows)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )

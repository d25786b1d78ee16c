"""The update of `steerling_jax/objectives/training_step.py` for a `RunConfig`; jitted in `compile_step`."""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh

from steerling_jax.models.steerling.backbone import Params
from steerling_jax.objectives import training_step
from steerling_jax.objectives.training_step import Batch, Metrics, Recipe, TrainState
from steerling_jax.train.run.run_config import RunConfig


def recipe_of(run: RunConfig) -> Recipe:
    return Recipe(run.model, run.steps, run.compute, run.objective, run.optimizer, run.accumulate, run.lora)


def init_state(run: RunConfig) -> TrainState:
    """The state before the first step, a function of `run.seed` and the model alone."""
    return training_step.init_state(recipe_of(run), jax.random.key(run.seed))


def train_step(
    state: TrainState, batch: Batch, base: Params | None = None, *, run: RunConfig
) -> tuple[TrainState, Metrics]:
    """One update on `batch`, with the draws of (`run.seed`, step); `base` are the weights under adapters."""
    return training_step.update(state, batch, jax.random.key(run.seed), recipe=recipe_of(run), base=base)


def shardings(run: RunConfig, mesh: Mesh) -> TrainState:
    """Where the state lies on the mesh."""
    return training_step.state_shardings(recipe_of(run), mesh)


def abstract_state(run: RunConfig, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and places, without making it."""
    shapes = jax.eval_shape(partial(init_state, run))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings(run, mesh)
    )


def model_params(run: RunConfig, trained: Params, base: Params | None) -> Params:
    """The parameters as they are evaluated and exported: `trained`, or adapters merged into `base`."""
    return training_step.model_params(recipe_of(run), trained, base)


def compile_step(run: RunConfig, state: TrainState, batch: Batch, base: Params | None = None) -> jax.stages.Compiled:
    """`train_step` compiled for these shapes and where they lie (arrays, or ShapeDtypeStructs with shardings). It takes
    the state's memory over: a state that went in is gone."""
    # Metrics lie where the step's number lies: on every device.
    placed = jax.tree.map(lambda leaf: leaf.sharding, state), state.step.sharding
    step = jax.jit(partial(train_step, run=run), donate_argnums=0, out_shardings=placed)
    with jax.set_mesh(state.step.sharding.mesh):
        return step.lower(state, batch, base).compile()

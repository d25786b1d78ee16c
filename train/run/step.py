"""The training step of a run: `objectives/training_step.py` with the seed of the run, compiled for its mesh."""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh

from steerling_jax.models.backbone import Params
from steerling_jax.objectives import training_step
from steerling_jax.objectives.training_step import Batch, Metrics, TrainState, state_shardings
from steerling_jax.train.run.run_config import RunConfig


def init_state(run: RunConfig) -> TrainState:
    """The state before the first step: a function of `run.seed` and the model's config alone."""
    return training_step.init_state(run, jax.random.key(run.seed))


def train_step(
    state: TrainState, batch: Batch, base: Params | None = None, *, run: RunConfig
) -> tuple[TrainState, Metrics]:
    """One update on `batch` with the random numbers of (`run.seed`, step); `base`: the parameters under adapters."""
    return training_step.update(state, batch, jax.random.key(run.seed), recipe=run, base=base)


def abstract_state(run: RunConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    shapes = jax.eval_shape(partial(init_state, run))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(run, mesh),
    )


def compile_step(run: RunConfig, state: TrainState, batch: Batch, base: Params | None = None) -> jax.stages.Compiled:
    """Compiles `train_step` for these shapes and shardings (of arrays, or of ShapeDtypeStructs).

    The state is donated: the step reuses its memory for the new state, and the arrays that went in are deleted.
    """
    # The new state must have the shardings of the old one: the compiled step takes no others, and XLA would be free to
    # choose. Metrics are scalars and are replicated, as is the step number.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state), state.step.sharding
    step = jax.jit(partial(train_step, run=run), donate_argnums=0, out_shardings=shardings)
    with jax.set_mesh(state.step.sharding.mesh):
        return step.lower(state, batch, base).compile()

"""One update: gradients, clip, AdamW, and a guard against non-finite numbers. Pure; whoever calls it jits it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.config import Compute, ModelConfig
from steerling_jax.model import init_params
from steerling_jax.objective import ObjectiveConfig, loss_fn
from steerling_jax.optimizer import OptimizerConfig, learning_rate, make_optimizer
from steerling_jax.sharding import param_shardings

Batch = dict[str, Any]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What an update depends on, beside the state, the batch and the key. steps: of the whole run."""

    model: ModelConfig
    steps: int
    compute: Compute = field(default_factory=Compute)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@struct.dataclass
class TrainState:
    """step () int32: batches seen. skipped () int32: those of them whose loss or gradient was not finite, and which
    changed nothing."""

    step: Any
    skipped: Any
    params: Any
    opt_state: optax.OptState


def init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """The state before the first step of the run with this key."""
    # Another stream than the steps' own, which fold in their number.
    params = init_params(recipe.model, jax.random.fold_in(key, 2**31 - 1))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, jnp.copy(zero), params, make_optimizer(recipe.optimizer, recipe.steps).init(params))


def state_shardings(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Where a state lies: parameters by the table of `sharding.py`, the optimizer's moments like their parameters."""
    whole = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(recipe.model, mesh)
    shapes = jax.eval_shape(partial(init_state, recipe), jax.random.key(0))
    moments = optax.tree_map_params(
        make_optimizer(recipe.optimizer, recipe.steps), lambda _, sharding: sharding, shapes.opt_state, params,
        transform_non_params=lambda _: whole,
    )  # fmt: skip
    return TrainState(whole, whole, params, moments)


def update(state: TrainState, batch: Batch, key: jax.Array, *, recipe: Recipe) -> tuple[TrainState, Metrics]:
    """One update on `batch` (docs/design.md, with a leading batch axis).

    Randomness is keyed by (key, step) alone, so that a resumed run draws what the uninterrupted one would have drawn.
    """
    at_step = jax.random.fold_in(key, state.step)
    progress = state.step.astype(jnp.float32) / recipe.steps
    objective = partial(loss_fn, config=recipe.model, compute=recipe.compute, objective=recipe.objective)
    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params, batch, at_step, progress)
    norm = optax.tree.norm(grads)
    optimizer = make_optimizer(recipe.optimizer, recipe.steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(partial(jnp.where, finite), new, old)

    # AdamW counts the updates it made.
    rate = learning_rate(recipe.optimizer, recipe.steps)(state.step - state.skipped)
    new = TrainState(
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
        params=keep(optax.apply_updates(state.params, updates), state.params),
        opt_state=keep(opt_state, state.opt_state),
    )
    return new, {**metrics, "loss": loss, "gradient_norm": norm, "learning_rate": rate, "skipped": new.skipped}

"""One update: gradients, clip, AdamW, and a guard against non-finite numbers. Pure; jitted in `compile_step`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from steerling_jax.model import init_params
from steerling_jax.objective import loss_fn
from steerling_jax.optimizer import learning_rate, make_optimizer

from .run_config import RunConfig

Batch = dict[str, Any]
Metrics = dict[str, Any]


@struct.dataclass
class TrainState:
    """step: batches seen. skipped: those of them whose loss or gradient was not finite, and which changed nothing."""

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: optax.OptState


def init_state(run: RunConfig) -> TrainState:
    """The state before the first step, a function of `run.seed` and the model alone."""
    # Another stream than the steps' own, which fold in their number.
    params = init_params(run.model, jax.random.fold_in(jax.random.key(run.seed), 2**31 - 1))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, jnp.copy(zero), params, make_optimizer(run.optimizer, run.steps).init(params))


def train_step(state: TrainState, batch: Batch, *, run: RunConfig) -> tuple[TrainState, Metrics]:
    """One update on `batch` (docs/design.md, with a leading batch axis).

    Randomness is keyed by (seed, step) alone, so that a resumed run draws what the uninterrupted one would have drawn.
    """
    key = jax.random.fold_in(jax.random.key(run.seed), state.step)
    progress = state.step.astype(jnp.float32) / run.steps
    objective = partial(loss_fn, config=run.model, compute=run.compute, objective=run.objective)
    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params, batch, key, progress)
    norm = optax.tree.norm(grads)
    updates, opt_state = make_optimizer(run.optimizer, run.steps).update(grads, state.opt_state, state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(partial(jnp.where, finite), new, old)

    rate = learning_rate(run.optimizer, run.steps)(state.step - state.skipped)  # AdamW counts the updates it made
    new = TrainState(
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
        params=keep(optax.apply_updates(state.params, updates), state.params),
        opt_state=keep(opt_state, state.opt_state),
    )
    return new, {**metrics, "loss": loss, "gradient_norm": norm, "learning_rate": rate, "skipped": new.skipped}


def compile_step(run: RunConfig, state: TrainState, batch: Batch) -> jax.stages.Compiled:
    """`train_step` compiled for these shapes. It takes the state's memory over: a state that went in is gone."""
    step = jax.jit(partial(train_step, run=run), donate_argnums=0)
    return step.lower(state, batch).compile()

"""An exponential moving average of the parameters, as a part of the optimizer's state.

It is in the optimizer's state so that checkpoints, shardings and skipped steps treat it like the moments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ParameterAverage(NamedTuple):
    """updates: their number n so far, () int32. total: a tree like the parameters, Σᵢ (1 − a) aⁿ⁻ⁱ pᵢ over the
    parameters pᵢ after each update i, for the decay a."""

    updates: jax.Array
    total: Any


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Averages the parameters after each update and leaves the update as it is; must be the last of a chain."""

    def init(params: Any) -> ParameterAverage:
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ParameterAverage]:
        after = optax.apply_updates(params, updates)
        total = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.total, after)
        return updates, ParameterAverage(state.updates + 1, total)

    return optax.GradientTransformation(init, update)


def averaged(params: Any, opt_state: optax.OptState, decay: float) -> Any:
    """The average in `opt_state`; `params`, the parameters themselves, before the first update.

    The sum began at 0, so it is divided by the sum of the weights, 1 − aⁿ, as Adam's moments are.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_average)
    (state,) = (leaf for leaf in leaves if _is_average(leaf))
    weights = 1 - decay ** state.updates.astype(jnp.float32)
    return jax.tree.map(
        lambda total, now: jnp.where(state.updates > 0, total / jnp.maximum(weights, 1e-30), now), state.total, params
    )


def _is_average(leaf: Any) -> bool:
    return isinstance(leaf, ParameterAverage)

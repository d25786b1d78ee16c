"""The control of the steering evaluation: steering of equal norm in a random direction."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.steering.plan import SteeringPlan


def random_control(plan: SteeringPlan, key: jax.Array, *, params: Params, compute: Compute) -> SteeringPlan:
    """The plan with one random direction r in place of its own: injections and features of equal norm at the same
    layers and steps, and `relu(lm_head · r)`, scaled to equal norm, in place of the suppression vector.

    Clamps are dropped. Norms are equal up to the rounding to the compute dtype.
    """
    unit = jax.random.normal(key, (plan.width,))
    unit = unit / jnp.linalg.norm(unit)
    direction = np.asarray(unit.astype(compute.dtype).astype(jnp.float32))
    parts = tuple(
        dataclasses.replace(part, direction=direction, alpha=part.alpha * float(np.linalg.norm(part.direction)))
        for part in plan.parts
    )
    suppression = plan.suppression
    if bool(jnp.any(suppression)):  # features suppress no tokens, and their model may be of another family
        aligned = jnp.maximum(lm_head_weight(params).astype(jnp.float32) @ unit, 0.0)
        suppression = aligned * jnp.linalg.norm(suppression) / jnp.linalg.norm(aligned)
    features = tuple(
        dataclasses.replace(
            one,
            direction=tuple((direction * np.linalg.norm(one.direction) / np.linalg.norm(direction)).tolist()),
            label=f"random, as {one.describe()}",
        )
        for one in plan.features
    )
    labels = tuple(f"random, as {label}" for label in plan.labels)
    return dataclasses.replace(
        plan, parts=parts, suppression=suppression, clamps=None, labels=labels, features=features
    )

"""One training update of a TopK autoencoder, and the state before the first one.

The functions are pure; the caller compiles them. Practice that the state keeps to: tied initialisation, decoder rows of
length 1 with the part of their gradient along them removed, `b_dec` at the geometric median, rows of extreme norm left
out (a model's first position may have a norm a hundred times that of others).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.objective import OutputLoss, TrainedWeights, loss_and_gradients
from steerling_jax.errors import require
from steerling_jax.models.geometric_median import geometric_median

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class AutoencoderRecipe:
    """What an update depends on, besides the state and the rows.

    Attributes:
        n_latents: S.
        k: latents kept of each row.
        steps: of the whole run, for the schedule.
        batch_rows: N, rows of a step.
        learning_rate: Adam's; None for 2e-4 / √(S / 2¹⁴).
        warm_up: the share of the steps in which the rate rises from 0.
        decay: the share of the steps, at the end, in which it falls to 0.
        aux_weight: the weight of AuxK, the loss for dead latents.
        k_aux: dead latents kept of each row; None for half the width.
        max_dead: dead latents offered in a step; None for twice the width. Without a limit, AuxK would cost as much as
            a dense step when half of the latents are dead.
        dead_after: rows without being kept after which a latent is dead.
        norm_limit: rows whose norm exceeds this many times the median are left out.
    """

    n_latents: int
    k: int
    steps: int
    batch_rows: int = 4096
    learning_rate: float | None = None
    warm_up: float = 0.05
    decay: float = 0.2
    aux_weight: float = 1 / 32
    k_aux: int | None = None
    max_dead: int | None = None
    dead_after: int = 10_000_000
    norm_limit: float = 6.0

    def __post_init__(self) -> None:
        for name in ("n_latents", "k", "steps", "batch_rows", "dead_after"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it must be at least 1.", name)
        require(self.k <= self.n_latents, f"k is {self.k}, but there are only {self.n_latents} latents.", "k")
        require(self.norm_limit > 1, f"norm_limit is {self.norm_limit}, but it must be above 1.", "norm_limit")


@struct.dataclass
class AutoencoderState:
    """The state between two steps. step: () int32. silent: (S,) int32, rows since a latent was last kept. limit: ()
    float32, the largest norm of a row that counts."""

    step: jax.Array
    trained: TrainedWeights
    opt_state: Any
    silent: jax.Array
    limit: jax.Array


def init_state(
    recipe: AutoencoderRecipe, sample: jax.Array, key: jax.Array, *, from_rows: bool = False
) -> AutoencoderState:
    """The state before the first step. sample: (R, D) rows of the data, from which `b_dec` and the limit are taken, and
    with `from_rows` also the directions of the features, which are random otherwise."""
    norms = jnp.linalg.norm(sample, axis=1)
    limit = recipe.norm_limit * jnp.median(norms)
    middle = geometric_median(sample, (norms <= limit).astype(jnp.float32))
    if from_rows:
        trained = _features_of_rows(recipe, sample - middle[None], middle, key)
    else:
        rows = _unit(jax.random.normal(key, (recipe.n_latents, sample.shape[1])))
        trained = TrainedWeights(rows, jnp.copy(rows), jnp.zeros(recipe.n_latents), middle)
    zero = jnp.zeros((), jnp.int32)
    silent = jnp.zeros(recipe.n_latents, jnp.int32)
    return AutoencoderState(zero, trained, _optimizer(recipe).init(cast(Any, trained)), silent, limit)


def _features_of_rows(
    recipe: AutoencoderRecipe, centred: jax.Array, middle: jax.Array, key: jax.Array
) -> TrainedWeights:
    """Features that point to rows of the data, centred (R, D), each with a little of another row, so that there may be
    more features than rows. The encoder has the factor with which the kept latents fit the rows best in squares:
    features that are alike would overshoot."""
    first, second = (jax.random.choice(one, len(centred), (recipe.n_latents,)) for one in jax.random.split(key))
    rows = _unit(_unit(centred[first]) + 0.5 * _unit(centred[second]))
    tied = TrainedWeights(rows, rows, jnp.zeros(recipe.n_latents), jnp.zeros_like(middle))
    weights = tied.weights(recipe.k)
    output = decode_rows(weights, *encode_rows(weights, centred, recipe.k))
    factor = jnp.maximum(jnp.sum(output * centred), 0.0) / jnp.maximum(jnp.sum(output**2), 1e-12)
    return TrainedWeights(factor * rows, jnp.copy(rows), jnp.zeros(recipe.n_latents), middle)


def _unit(rows: jax.Array) -> jax.Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def restart(state: AutoencoderState, recipe: AutoencoderRecipe) -> AutoencoderState:
    """The state before the first step of another recipe, which goes on with the same autoencoder: its optimizer knows
    nothing of the gradients before, whose scale was another."""
    opt_state = _optimizer(recipe).init(cast(Any, state.trained))
    return dataclasses.replace(state, step=jnp.zeros_like(state.step), opt_state=opt_state)


def update(
    state: AutoencoderState, x: jax.Array, *, recipe: AutoencoderRecipe, output_loss: OutputLoss | None = None
) -> tuple[AutoencoderState, Metrics]:
    """One update on the rows x (N, D); returns the new state and metrics, float32 scalars.

    output_loss: what is minimised; None for the unexplained variance. Metrics: loss, unexplained (variance),
    auxiliary, dead (share of the latents), left_out (share of the rows); with an `output_loss` also output_loss.
    """
    D = x.shape[1]
    x = x.astype(jnp.float32)
    counts = jnp.linalg.norm(x, axis=1) <= state.limit  # also False for NaN
    x = jnp.where(counts[:, None], x, 0.0)
    dead = state.silent >= recipe.dead_after
    parts, gradients = loss_and_gradients(
        state.trained,
        x,
        counts.astype(jnp.float32),
        dead,
        state.step,
        k=recipe.k,
        k_aux=min(recipe.k_aux or max(1, D // 2), recipe.n_latents),
        max_dead=min(recipe.max_dead or 2 * D, recipe.n_latents),
        aux_weight=recipe.aux_weight,
        output_loss=output_loss,
    )
    decoder = state.trained.decoder
    along = jnp.sum(gradients.decoder * decoder, axis=1, keepdims=True)
    gradients = dataclasses.replace(gradients, decoder=gradients.decoder - along * decoder)
    optimizer = _optimizer(recipe)
    updates, opt_state = optimizer.update(cast(Any, gradients), state.opt_state, cast(Any, state.trained))
    trained = cast(TrainedWeights, optax.apply_updates(cast(Any, state.trained), updates))
    lengths = jnp.linalg.norm(trained.decoder, axis=1, keepdims=True)
    trained = dataclasses.replace(trained, decoder=trained.decoder / lengths)
    seen = jnp.sum(counts).astype(jnp.int32)
    new = AutoencoderState(
        step=state.step + 1,
        trained=trained,
        opt_state=opt_state,
        # Bounded, because the count would overflow after 2³¹ rows.
        silent=jnp.where(parts.fired, 0, jnp.minimum(state.silent + seen, recipe.dead_after)),
        limit=state.limit,
    )
    own = {} if output_loss is None else {"output_loss": parts.output}
    return new, own | {
        "loss": parts.output + recipe.aux_weight * parts.auxiliary,
        "unexplained": parts.unexplained,
        "auxiliary": parts.auxiliary,
        "dead": jnp.mean(dead, dtype=jnp.float32),
        "left_out": 1.0 - jnp.mean(counts, dtype=jnp.float32),
    }


def learning_rate(recipe: AutoencoderRecipe) -> optax.Schedule:
    """The rate of each step: it rises from 0, is constant, and falls to 0 at the end."""
    rate = recipe.learning_rate or 2e-4 / math.sqrt(recipe.n_latents / 2**14)
    warm_up, decay = (max(1, round(share * recipe.steps)) for share in (recipe.warm_up, recipe.decay))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warm_up),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, 0.0, decay),
        ],
        [warm_up, max(warm_up, recipe.steps - decay)],
    )


def _optimizer(recipe: AutoencoderRecipe) -> optax.GradientTransformation:
    return optax.adam(learning_rate(recipe))

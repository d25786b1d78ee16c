"""One training update: gradients, clipping, the optimizer, and a guard against non-finite values.

The functions are pure; the caller compiles them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import init_params, param_shardings
from steerling_jax.models.lora import LoraConfig, adapter_shardings, init_adapters, merge_adapters, with_adapters
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.objectives.dictionary import IDLE, USES, DictionaryObjective
from steerling_jax.objectives.dictionary_losses import next_idle
from steerling_jax.objectives.objective import Draws, Objective
from steerling_jax.objectives.optimizer import (
    OptimizerConfig,
    learning_rate,
    like_parameters,
    make_optimizer,
    with_unit_embeddings,
)
from steerling_jax.objectives.parameter_average import averaged
from steerling_jax.objectives.pretraining import ObjectiveConfig

Batch = dict[str, Any]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What an update depends on, besides the state, the batch and the key.

    model: the configuration, a `ModelConfig` of Steerling or a `DecoderConfig` of another family.
    steps: the number of steps of the whole run, for schedules.
    accumulate: the number of parts into which a batch is split. Their gradients are computed one after the other and
    added, which needs less memory.
    lora: train adapters on top of given parameters, which stay fixed.
    """

    model: Any
    steps: int
    compute: Compute = field(default_factory=Compute)
    objective: Objective = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    accumulate: int = 1
    lora: LoraConfig | None = None


@struct.dataclass
class TrainState:
    """The state of a run between two steps.

    step () int32: the number of batches seen. skipped () int32: the number of these whose loss or gradient was not
    finite, and which changed no parameter. params, float32: what is trained, the model's parameters or the adapters.
    """

    step: Any
    skipped: Any
    params: Any
    opt_state: optax.OptState


@struct.dataclass
class DictionaryState(TrainState):
    """The state of a run with a `DictionaryObjective`. idle (C,) int32: for how many steps no row has used each of the
    dictionary's concepts."""

    idle: Any


def init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """The state before the first step of the run with this key."""
    # A random stream of its own: the steps fold their number into the key, and none has this number.
    key = jax.random.fold_in(key, 2**31 - 1)
    lora = recipe.lora
    params = init_params(recipe.model, key) if lora is None else init_adapters(recipe.model, lora, key)
    zero = jnp.zeros((), jnp.int32)
    fields = zero, jnp.copy(zero), params, recipe_optimizer(recipe).init(params)
    if not isinstance(recipe.objective, DictionaryObjective):
        return TrainState(*fields)
    return DictionaryState(*fields, idle=jnp.zeros(concept_counts(recipe.model)[1], jnp.int32))


def recipe_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The optimizer of a recipe's parameters."""
    objective = recipe.objective
    heads_only = isinstance(objective, DictionaryObjective) and objective.heads_only
    dictionary = _trains_dictionary(recipe)
    return make_optimizer(recipe.optimizer, recipe.steps, dictionary=dictionary, heads_only=heads_only)


def _trains_dictionary(recipe: Recipe) -> bool:
    concept = recipe.model.concept if isinstance(recipe.model, ModelConfig) else None
    return concept is not None and concept.dictionary is not None and recipe.lora is None


def evaluated_params(recipe: Recipe, state: TrainState) -> Params:
    """What of a state is evaluated and exported: the trained parameters, or their moving average.

    The average of a dictionary's embeddings, which have the length 1, is shorter and is scaled back to it.
    """
    decay = recipe.optimizer.average
    if not decay:
        return state.params
    average = averaged(state.params, state.opt_state, decay)
    return with_unit_embeddings(average) if _trains_dictionary(recipe) else average


def state_shardings(recipe: Recipe, mesh: Mesh) -> TrainState:
    """The sharding of a state: parameters by the table in `sharding`, the optimizer's moments like their parameters."""
    whole = NamedSharding(mesh, PartitionSpec())
    lora = recipe.lora
    params = param_shardings(recipe.model, mesh) if lora is None else adapter_shardings(recipe.model, lora, mesh)
    shapes = jax.eval_shape(partial(init_state, recipe), jax.random.key(0))
    fields = whole, whole, params, like_parameters(shapes.opt_state, params, otherwise=whole)
    return DictionaryState(*fields, idle=whole) if isinstance(shapes, DictionaryState) else TrainState(*fields)


def model_params(recipe: Recipe, trained: Params, base: Params | None) -> Params:
    """The parameters of a model: `trained` itself, or the adapters merged into `base`."""
    if recipe.lora is None:
        return trained
    assert base is not None, "adapters need the parameters that they are for"
    return merge_adapters(base, trained, recipe.lora)


def update(
    state: TrainState, batch: Batch, key: jax.Array, *, recipe: Recipe, base: Params | None = None
) -> tuple[TrainState, Metrics]:
    """One update of `state` on `batch`; returns the new state and metrics, float32 scalars.

    batch: arrays with a leading batch axis, see the objective's `draw`. base: the parameters that adapters are for.
    Randomness depends on (key, step) alone, so a resumed run draws the same as one that was not interrupted. A step
    whose loss or gradient is not finite changes nothing but the counters.
    """
    at_step = jax.random.fold_in(key, state.step)
    progress = state.step.astype(jnp.float32) / recipe.steps
    drawn = recipe.objective.draw(batch, at_step, progress, recipe.model)
    if isinstance(state, DictionaryState):
        drawn = drawn.replace(shared={**drawn.shared, IDLE: state.idle})  # type: ignore[attr-defined]
    (loss, metrics), grads = _gradients(recipe, state.params, base, drawn, progress)
    norm = optax.tree.norm(grads)
    optimizer = recipe_optimizer(recipe)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(partial(jnp.where, finite), new, old)

    # A skipped step is no update, so it does not advance the schedule of the learning rate.
    rate = learning_rate(recipe.optimizer, recipe.steps)(state.step - state.skipped)
    new = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        skipped=state.skipped + (~finite).astype(jnp.int32),
        params=if_finite(optax.apply_updates(state.params, updates), state.params),
        opt_state=if_finite(opt_state, state.opt_state),
    )
    if isinstance(state, DictionaryState):
        idle = next_idle(state.idle, metrics.pop(USES))
        new = new.replace(idle=if_finite(idle, state.idle))
    return new, {**metrics, "loss": loss, "gradient_norm": norm, "learning_rate": rate, "skipped": new.skipped}


def _gradients(
    recipe: Recipe, trained: Params, base: Params | None, drawn: Draws, progress: jax.Array
) -> tuple[tuple[jax.Array, Metrics], Params]:
    """((loss, metrics), gradients) of the whole batch, the sums over `recipe.accumulate` micro-batches."""

    def loss(trained: Params, sequences: Batch) -> tuple[jax.Array, Metrics]:
        params = trained
        if recipe.lora is not None:
            assert base is not None, "adapters need the parameters that they are for"
            params = with_adapters(base, trained, recipe.lora)
        part = Draws(sequences, drawn.shared)
        return recipe.objective.loss(params, part, progress, config=recipe.model, compute=recipe.compute)

    gradient = partial(jax.value_and_grad(loss, has_aux=True), trained)
    if recipe.accumulate == 1:
        return gradient(drawn.sequences)
    parts = drawn.split(recipe.accumulate)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), zeros, parts)[0]

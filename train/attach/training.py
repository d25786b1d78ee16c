"""The two stages of a bottleneck: a dictionary that reconstructs hidden rows, then one that keeps the distribution."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.distribution_loss import divergence, sample_vocabulary
from steerling_jax.autoencoders.output_metric import OutputMetric, output_metric
from steerling_jax.autoencoders.sharding import abstract_state
from steerling_jax.autoencoders.training_step import (
    AutoencoderRecipe,
    AutoencoderState,
    Metrics,
    init_state,
    restart,
    update,
)
from steerling_jax.bundle import Bundle
from steerling_jax.models.output_projection import OutputProjection, output_projection
from steerling_jax.train.attach.evaluate import evaluate_bottleneck
from steerling_jax.train.attach.hidden_rows import HiddenRows, Windows
from steerling_jax.train.attach.run_config import AttachRun

_SAMPLE = 8192  # rows from which the first dictionary is made
_METRIC_ROWS = 2048  # rows from which the metric is computed, with all their logits
_SAMPLE_STREAM, _TOKEN_STREAM = 3, 4
_UNIFORM = 0.5  # the part of the sampled tokens that does not go by their frequency

State = dict[str, AutoencoderState]  # a dict, because checkpoints need one at the top
_DICTIONARY = "dictionary"


class AttachTraining:
    """See `train.autoencoders.loop.Training`."""

    def __init__(self, run: AttachRun, bundle: Bundle, hidden: HiddenRows, held_out: Windows):
        self._run, self._bundle, self._hidden, self._held_out = run, bundle, hidden, held_out
        order = np.random.default_rng([run.seed, _SAMPLE_STREAM]).permutation(len(hidden.rows))
        self._sample = hidden.rows[order[:_SAMPLE]].astype(np.float32)
        projection = output_projection(bundle.params, bundle.config)
        self._metric: OutputMetric = output_metric(projection, self._sample[:_METRIC_ROWS], run.k)
        self._projection = self._metric.projection(projection)
        V = self._projection.table.shape[0]
        self._importance = (1 - _UNIFORM) * self._metric.usage + _UNIFORM / V
        self._key = jax.random.key(run.seed)
        self.sources = (f"{bundle.name}: {len(hidden.rows):,} hidden rows after the final norm",)

    @property
    def mesh(self) -> None:
        """One device."""

    def initial(self) -> State:
        """A dictionary of directions of rows, in the coordinates of the metric."""
        sample = _in_metric(jnp.asarray(self._sample), self._metric.to)
        return {_DICTIONARY: init_state(self._run.reconstruct, sample, self._key, from_rows=True)}

    def shapes(self) -> State:
        """Shapes and dtypes of the state."""
        return {_DICTIONARY: abstract_state(self._run.reconstruct, self._sample.shape[1], None)}

    def _stage(self, step: int) -> tuple[int, AutoencoderRecipe, int]:
        """(number, recipe, step within the stage) of a step."""
        first = self._run.reconstruct
        return (0, first, step) if step < first.steps else (1, self._run.match, step - first.steps)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Hidden rows and their top tokens."""
        stage, recipe, within = self._stage(step)
        return self._hidden.batch(self._run.seed, stage, within, recipe.batch_rows)

    def rows(self, step: int) -> int:
        """Rows of a step's batch."""
        return self._stage(step)[1].batch_rows

    def advance(self, state: State, step: int, batch: Any) -> tuple[State, Metrics]:
        """An update of the stage that `step` belongs to."""
        stage, recipe, within = self._stage(step)
        dictionary, (rows, top) = state[_DICTIONARY], map(jnp.asarray, batch)
        if stage == 0:
            dictionary, metrics = _reconstruct(dictionary, rows, self._metric.to, recipe=recipe)
            return {_DICTIONARY: dictionary}, metrics
        if within == 0:
            dictionary = restart(dictionary, recipe)
        key = jax.random.fold_in(jax.random.fold_in(self._key, _TOKEN_STREAM), within)
        dictionary, metrics = _match(
            dictionary,
            rows,
            top,
            self._metric.to,
            self._projection.table,
            self._importance,
            key,
            recipe=recipe,
            cap=self._projection.cap,
            sampled=self._run.sampled,
        )
        return {_DICTIONARY: dictionary}, metrics

    def evaluate(self, state: State) -> dict[str, Any]:
        """What the bottleneck costs on held-out text, with controls."""
        return evaluate_bottleneck(self._bundle, self.result(state), self._held_out, self._run.windows)

    def result(self, state: State) -> Autoencoder:
        """The bottleneck, in the coordinates of the hidden rows themselves."""
        weights = self._metric.weights(state[_DICTIONARY].trained.weights(self._run.k))
        return Autoencoder(weights, None, f"the bottleneck of {self._bundle.name}")


@jax.jit
def _in_metric(rows: jax.Array, to: jax.Array) -> jax.Array:
    return jnp.dot(rows.astype(jnp.float32), to, precision="highest")


@partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def _reconstruct(
    state: AutoencoderState, rows: jax.Array, to: jax.Array, *, recipe: AutoencoderRecipe
) -> tuple[AutoencoderState, Metrics]:
    return update(state, _in_metric(rows, to), recipe=recipe)


@partial(jax.jit, static_argnames=("recipe", "cap", "sampled"), donate_argnums=0)
def _match(
    state: AutoencoderState,
    rows: jax.Array,
    top: jax.Array,
    to: jax.Array,
    table: jax.Array,
    importance: jax.Array,
    key: jax.Array,
    *,
    recipe: AutoencoderRecipe,
    cap: float | None,
    sampled: int,
) -> tuple[AutoencoderState, Metrics]:
    x = _in_metric(rows, to)
    tokens = sample_vocabulary(importance, sampled, key)

    def output_loss(output: jax.Array) -> tuple[jax.Array, jax.Array]:
        return divergence(OutputProjection(table, cap), x, output, top, tokens)

    return update(state, x, recipe=recipe, output_loss=output_loss)

"""A new dictionary of discovered concepts, from the hidden states of a run's first batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.dictionary import dictionary_from_rows
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.rows import gather_rows
from steerling_jax.objectives.training_step import Batch, TrainState
from steerling_jax.train.run.run_config import RunConfig

_ROWS = 8192  # about as many masked positions are read


def makes_dictionary(run: RunConfig) -> bool:
    """Whether the run starts with a new dictionary."""
    return isinstance(run.objective, DictionaryObjective) and run.objective.initial == "data"


def with_dictionary(run: RunConfig, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    """The first state of a run, with a dictionary that fits the hidden states of the first of its `batches`.

    A function of the run's seed and data alone, so a run that is killed before its first checkpoint makes it again.
    """
    count = max(1, _ROWS // run.tokens_per_step)
    key = jax.random.fold_in(jax.random.key(run.seed), 2**31 - 2)  # steps and the initial parameters use other numbers
    with jax.set_mesh(state.step.sharding.mesh):
        read = jax.jit(partial(_hidden_rows, run))
        parts = [
            read(state.params, batch, jax.random.fold_in(key, number))
            for number, batch in enumerate(itertools.islice(batches, count))
        ]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        make = jax.jit(partial(_make, run), donate_argnums=0, out_shardings=shardings)
        return state.replace(params=make(state.params, parts, key))  # type: ignore[attr-defined]


def _hidden_rows(run: RunConfig, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states (M, D) float32 at the masked positions of a batch, and 0 for the fillers among them, (M,)."""
    objective = run.objective
    assert isinstance(objective, DictionaryObjective)
    drawn = objective.draw(batch, key, jnp.zeros(()), run.model).sequences
    context = objective.noise.clean_context
    hidden = denoise(
        params, drawn["tokens"], drawn["noisy"], config=run.model, compute=run.compute, clean_context=context
    )
    rows = gather_rows(hidden, drawn, drawn["levels"], drawn["masked"], run.model.diff_block_size, objective.rows)
    return rows.hidden.astype(jnp.float32), rows.valid


def _make(run: RunConfig, params: Params, parts: list[tuple[jax.Array, jax.Array]], key: jax.Array) -> Params:
    rows, valid = (jnp.concatenate(each) for each in zip(*parts, strict=True))
    return dictionary_from_rows(params, rows, valid, key, config=run.model)

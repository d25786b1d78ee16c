"""Training small models many times on documents in memory.

The steps of a tenth of a run are one compiled scan, so that Python has no part in the many short steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.planted.recipe import BATCH
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore
from steerling_jax.objectives.training_step import Recipe, TrainState, init_state, update

Params = dict[str, Any]
Batch = dict[str, np.ndarray]
PARTS = 10  # equal parts of a run, after each of which the parameters can be saved
SAVED_PARTS = (2, PARTS - 1)  # parts after which the parameters are saved


@dataclass(frozen=True)
class Documents:
    """Documents of one length as training examples (docs/design/corpus.md), with a leading axis of documents.

    Attributes:
        examples: Arrays of a training batch, by name.
        source: Number of each document's source (a book). Documents of a source are left out together.
    """

    examples: Batch
    source: np.ndarray

    @classmethod
    def read(cls, store: CorpusStore) -> Documents:
        """Reads the training split, one sequence per document. Raises `UserError` if their lengths differ."""
        records = [record for record in store.documents if record.split == "train"]
        start, end = store.split("train")
        length = records[0].end - records[0].start
        if any(record.end - record.start != length for record in records):
            raise UserError(
                f"The documents of {store.folder} differ in length: only a planted corpus can be used here."
            )
        n = len(records)
        first, last = store.chunks_between(start, end)
        chunk = np.full(end - start, -1, np.int32)
        document = store.read("chunk_documents", first, last)
        number = np.arange(last - first) - np.searchsorted(document, document)
        labels = np.full((n, int(number.max()) + 1, MAX_LABELS), -1, np.int32)
        labels[document, number] = store.read("chunk_labels", first, last)
        for place, (a, b) in zip(number, store.read("chunk_spans", first, last), strict=True):
            chunk[a:b] = place
        tokens = store.tokens(start, end).astype(np.int32)
        examples = {
            "tokens": tokens.reshape(n, length),
            "chunk_index": chunk.reshape(n, length),
            "chunk_labels": labels,
        }
        _, source = np.unique([record.source for record in records], return_inverse=True)
        return cls(examples, source)

    def __len__(self) -> int:
        return len(self.source)


def draw_batches(documents: Documents, members: np.ndarray, *, batch: int, steps: int, seed: int) -> Batch:
    """Batches (steps, batch, …) of the documents numbered in `members`, in another order in each epoch."""
    draw = np.random.default_rng(seed)
    epochs = -(-steps * batch // len(members))
    order = np.concatenate([draw.permutation(members) for _ in range(epochs)])[: steps * batch]
    order = order.reshape(steps, batch)
    return {name: value[order] for name, value in documents.examples.items()}


def fit(recipe: Recipe, batches: Batch, seed: int) -> Iterator[tuple[int, Params, dict[str, float]]]:
    """Trains a new model on `batches` (steps, B, …).

    After each of `PARTS` equal parts of the run, yields the step, the parameters and the part's mean metrics.
    """
    key = jax.random.key(seed)
    state = _initial_state(key, recipe=recipe)
    size = recipe.steps // PARTS  # the same for all runs of a recipe, so one program is compiled
    for start in range(0, recipe.steps, size):
        part = {name: jnp.asarray(value[start : start + size]) for name, value in batches.items()}
        state, metrics = _run_part(state, part, key, recipe=recipe)
        yield start + size, state.params, {name: float(value) for name, value in metrics.items()}


@partial(jax.jit, static_argnames="recipe")
def _initial_state(key: jax.Array, *, recipe: Recipe) -> TrainState:
    return init_state(recipe, key)


@partial(jax.jit, static_argnames="recipe")
def _run_part(state: TrainState, batches: dict[str, jax.Array], key: jax.Array, *, recipe: Recipe):
    """One update per batch; returns the state and the metrics' means."""
    state, metrics = jax.lax.scan(lambda state, batch: update(state, batch, key, recipe=recipe), state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


class TrainedModel(NamedTuple):
    """A model of the whole corpus: its seed, its final parameters, and those after each of `SAVED_PARTS`."""

    seed: int
    params: Params
    checkpoints: tuple[Params, ...]


def train(recipe: Recipe, documents: Documents, seed: int) -> TrainedModel:
    """Trains a model on all documents."""
    batches = draw_batches(documents, np.arange(len(documents)), batch=BATCH, steps=recipe.steps, seed=seed)
    params = [params for _, params, _ in fit(recipe, batches, seed)]
    return TrainedModel(seed, params[-1], tuple(params[i] for i in SAVED_PARTS))

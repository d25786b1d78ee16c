"""Training small models on documents held in memory, many times: all steps of a stretch in one compiled scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore
from steerling_jax.objectives.training_step import Recipe, TrainState, init_state, update

Params = dict[str, Any]
Batch = dict[str, np.ndarray]
STRETCHES = 10  # parts of a run


@dataclass(frozen=True)
class Documents:
    """Documents of one length as training examples (docs/design/corpus.md), with a leading axis of documents.

    source: of each, a number; documents of a source are in or out together.
    """

    examples: Batch
    source: np.ndarray

    @classmethod
    def read(cls, store: CorpusStore) -> Documents:
        """The training split's, one sequence each. Raises `UserError` where they are of different lengths."""
        records = [record for record in store.documents if record.split == "train"]
        start, end = store.split("train")
        length = records[0].end - records[0].start
        if any(record.end - record.start != length for record in records):
            raise UserError(
                f"The documents of {store.folder} differ in length: only planted corpora can be fitted here."
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


def draw_batches(documents: Documents, kept: np.ndarray, *, batch: int, steps: int, seed: int) -> Batch:
    """Batches for `steps` steps, (steps, batch, …), of the documents numbered in `kept`: in each epoch all of them, in
    another order."""
    draw = np.random.default_rng(seed)
    epochs = -(-steps * batch // len(kept))
    order = np.concatenate([draw.permutation(kept) for _ in range(epochs)])[: steps * batch]
    order = order.reshape(steps, batch)
    return {name: value[order] for name, value in documents.examples.items()}


def fit(recipe: Recipe, batches: Batch, seed: int) -> Iterator[tuple[int, Params, dict[str, float]]]:
    """Trains from the start on `batches` (steps, B, …). After each of `STRETCHES` equal parts of the run gives the
    step, the parameters and the mean metrics of the stretch."""
    key = jax.random.key(seed)
    state = _start(key, recipe=recipe)
    size = recipe.steps // STRETCHES  # one compiled program for every run
    for start in range(0, recipe.steps, size):
        part = {name: jnp.asarray(value[start : start + size]) for name, value in batches.items()}
        state, metrics = _run(state, part, key, recipe=recipe)
        yield start + size, state.params, {name: float(value) for name, value in metrics.items()}


@partial(jax.jit, static_argnames="recipe")
def _start(key: jax.Array, *, recipe: Recipe) -> TrainState:
    return init_state(recipe, key)


@partial(jax.jit, static_argnames="recipe")
def _run(state: TrainState, batches: dict[str, jax.Array], key: jax.Array, *, recipe: Recipe):
    """As many updates as `batches` has; also the metrics' means."""
    state, metrics = jax.lax.scan(lambda state, batch: update(state, batch, key, recipe=recipe), state, batches)
    return state, jax.tree.map(jnp.mean, metrics)

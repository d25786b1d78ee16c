"""A run's batches, by number: what is trained on, and what a step was trained on when something went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grain

from steerling_jax.api import special_ids
from steerling_jax.errors import UserError
from steerling_jax.io.corpus import MAX_LABELS, CorpusStore
from steerling_jax.io.tokenizer import ByteTable, load_tokenizer
from steerling_jax.steering_objective import SteeringObjective
from steerling_jax.training_step import Batch

from .conversations import Conversations
from .data import Example, Sequences, default_max_chunks, shuffled_batches, training_examples
from .processes import Share
from .run_config import RunConfig
from .steering_examples import lift_table, with_concepts


def placed_batches(run: RunConfig, store: CorpusStore, share: Share, first: int) -> Iterator[Batch]:
    """Batches from number `first` on (step n takes number n − 1), on the mesh; this process reads its own rows."""
    batches: Iterator[Example] = iter(_batches(run, store, first, share.rows))
    if isinstance(run.objective, SteeringObjective):
        batches = with_concepts(batches, lift_table(store, run.objective), run.seed, first)
    return map(share.place, batches)


def batch_shapes(run: RunConfig) -> dict[str, tuple[int, ...]]:
    """What a batch of all processes together is made of: int32 arrays of these shapes."""
    B, T = run.data.batch_size, run.data.seq_len
    shapes = {"tokens": (B, T), "sequence": (B,)}
    if run.data.messages is not None:
        return shapes | {"answer": (B, T)}
    S = run.data.max_chunks or default_max_chunks(T)
    if isinstance(run.objective, SteeringObjective):
        labels = {"concept": (B, S), "lifted": (B, S, run.objective.most_lifted)}
    else:
        labels = {"chunk_labels": (B, S, MAX_LABELS)}
    return {**shapes, "chunk_index": (B, T), **labels}


def batch_contents(run: RunConfig, store: CorpusStore, step: int) -> dict[str, Any]:
    """What step `step` saw, by all processes: numbers of its sequences and, for each, its chunks [first, end); of
    conversations, the numbers of the answers alone."""
    sequences = next(iter(_batches(run, store, step - 1, None)))["sequence"]
    found = {"step": step, "sequences": sequences.tolist()}
    if run.data.messages is not None:
        return found
    spans = Sequences(store, "train", run.data.seq_len, run.data.max_chunks)
    return found | {"chunks": [list(store.chunks_between(*spans.span(int(number)))) for number in sequences]}


def _batches(run: RunConfig, store: CorpusStore, first: int, rows: Sequence[int] | None) -> grain.IterDataset:
    data = run.data
    if data.messages is None:
        return training_examples(
            store, seq_len=data.seq_len, batch_size=data.batch_size, seed=run.seed, max_chunks=data.max_chunks,
            rows=rows, first_batch=first,
        )  # fmt: skip
    source = read_answers(run, store, data.messages)
    return shuffled_batches(source, batch_size=data.batch_size, seed=run.seed, rows=rows, first_batch=first)


def read_answers(run: RunConfig, store: CorpusStore, path: str) -> Conversations:
    """The conversations in the file, in the ids of the corpus and three more."""
    tokenizer = load_tokenizer(store.folder, special_ids(run.model), run.model.vocab_size)
    if not isinstance(tokenizer, ByteTable):
        raise UserError(f"The corpus {store.folder} has no tokenizer, so {path} cannot be read with it.")
    return Conversations(path, tokenizer, seq_len=run.data.seq_len, block=run.model.diff_block_size)

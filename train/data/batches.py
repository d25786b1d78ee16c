"""The batches of a training run by number: for training, and to inspect what a step was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grain

from steerling_jax.bundle import special_ids
from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.io.tokenizers.load import load_decoder_tokenizer, load_tokenizer
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.objectives.language_tuning import LanguageObjective
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.objectives.training_step import Batch
from steerling_jax.train.data.conversations import Conversations
from steerling_jax.train.data.pipeline import (
    Example,
    Sequences,
    default_max_chunks,
    shuffled_batches,
    training_examples,
)
from steerling_jax.train.data.steering_examples import lift_table, with_concepts
from steerling_jax.train.run.processes import ProcessShare
from steerling_jax.train.run.run_config import RunConfig


def batch_shapes(run: RunConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a global batch's arrays, all int32, by name."""
    B, T = run.data.batch_size, run.data.seq_len
    shapes = {"tokens": (B, T), "sequence": (B,)}
    if run.data.messages is not None:
        return shapes | {"answer": (B, T)} | ({"language": (B,)} if _languages(run) else {})
    S = run.data.max_chunks or default_max_chunks(T)
    if isinstance(run.objective, SteeringObjective):
        labels = {"concept": (B, S), "lifted": (B, S, run.objective.most_lifted)}
    else:
        labels = {"chunk_labels": (B, S, MAX_LABELS)}
    return {**shapes, "chunk_index": (B, T), **labels}


class Batches:
    """A run's batches by number: step n uses batch n − 1.

    answers: the conversations of an instruction run, held in memory; None for other runs.
    """

    def __init__(self, run: RunConfig, store: CorpusStore):
        self._run, self._store = run, store
        self.answers = None if run.data.messages is None else _read_answers(run, store, run.data.messages)

    def placed(self, share: ProcessShare, first: int) -> Iterator[Batch]:
        """The batches from number `first` on, sharded over the mesh; each process reads its own rows."""
        batches: Iterator[Example] = iter(self._shuffled(first, share.rows))
        objective = self._run.objective
        if isinstance(objective, SteeringObjective):
            batches = with_concepts(batches, lift_table(self._store, objective), self._run.seed, first)
        return map(share.place, batches)

    def contents(self, step: int) -> dict[str, Any]:
        """What step `step` was trained on, in all processes: the numbers of its sequences and the chunks of each.

        For conversations, the numbers of the answers only.
        """
        sequences = next(iter(self._shuffled(step - 1, None)))["sequence"]
        contents = {"step": step, "sequences": sequences.tolist()}
        if self.answers is not None:
            return contents
        spans = Sequences(self._store, "train", self._run.data.seq_len, self._run.data.max_chunks)
        return contents | {"chunks": [list(self._store.chunks_between(*spans.span(int(i)))) for i in sequences]}

    def _shuffled(self, first: int, rows: Sequence[int] | None) -> grain.IterDataset:
        """The batches from number `first` on; `rows` of each, or all."""
        data, seed = self._run.data, self._run.seed
        if self.answers is not None:
            return shuffled_batches(self.answers, batch_size=data.batch_size, seed=seed, rows=rows, first_batch=first)
        return training_examples(
            self._store,
            seq_len=data.seq_len,
            batch_size=data.batch_size,
            seed=seed,
            max_chunks=data.max_chunks,
            rows=rows,
            first_batch=first,
        )


def _languages(run: RunConfig) -> tuple[str, ...]:
    """The languages that an objective distinguishes; none for other objectives."""
    return run.objective.features.languages if isinstance(run.objective, LanguageObjective) else ()


def _read_answers(run: RunConfig, store: CorpusStore, path: str) -> Conversations:
    """The conversations in a file, in the corpus's token ids and the three that mark turns; for a decoder, as the chat
    template of the model that it starts from writes them.

    Raises `UserError` for a corpus without a tokenizer, or a model without a chat template.
    """
    if isinstance(run.model, DecoderConfig):
        assert run.start_from is not None, "RunConfig checks it"
        folder = hub.resolve(run.start_from)
        tokenizer = load_decoder_tokenizer(folder, special_ids(run.model), run.model.vocab_size)
        if not isinstance(tokenizer, ByteTable) or not tokenizer.has_chat_template:
            raise UserError(
                f"data.messages is {path}, but the model {folder} has no chat template, which makes prompts of "
                "conversations: start from a model that has one, or add its chat_template.jinja."
            )
        return Conversations(path, tokenizer, seq_len=run.data.seq_len, block=1, languages=_languages(run))
    tokenizer = load_tokenizer(store.folder, special_ids(run.model), run.model.vocab_size)
    if not isinstance(tokenizer, ByteTable):
        raise UserError(f"The corpus {store.folder} has no tokenizer to encode {path} with: use a corpus that has one.")
    return Conversations(path, tokenizer, seq_len=run.data.seq_len, block=run.model.diff_block_size)

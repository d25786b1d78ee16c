"""Activations of concepts over a corpus: strongest chunks, means and correlations, streamed in one pass.

A concept's activation at a position is its weight in the features: the sigmoid of its logit (in a dictionary the
positive part) where the concept is in the head's top k, else 0. Activations are read at masked positions only, with
every diffusion block denoised after unmasked earlier blocks, which is the state in which generation reads the heads. A
chunk's activation is the mean over its masked positions.

Legend: J requested concepts, C known concepts, S chunks of a batch, n strongest chunks, h held-out chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.concepts.concept import HEADS
from steerling_jax.concepts.heads import check_concepts
from steerling_jax.corpus.reader import Corpus
from steerling_jax.corpus.stream import stream_tokens
from steerling_jax.errors import UserError
from steerling_jax.explain.chunk_activations import Moments, chunk_activations
from steerling_jax.explain.concept_gradients import SourceConcept
from steerling_jax.progress import Progress, no_progress

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Activity:
    """Activations of J concepts over a corpus.

    strongest, strength (J, n): chunk numbers of the training split with the largest activations, best first (−1 if
    there are fewer than n), and these activations. mean (J,): over masked positions. correlation (J, C): with the known
    concepts over masked positions. background: training chunk numbers, evenly spaced over the tokens that were read.
    heldout (h,): held-out chunk numbers, with heldout_activation (h, J). tokens: number of tokens read, held-out ones
    included. level: the share of masked tokens.
    """

    concepts: tuple[SourceConcept, ...]
    strongest: np.ndarray
    strength: np.ndarray
    mean: np.ndarray
    correlation: np.ndarray
    background: np.ndarray
    heldout: np.ndarray
    heldout_activation: np.ndarray
    tokens: int
    level: float


def concept_activity(
    bundle: Bundle,
    store: Corpus,
    concepts: Sequence[SourceConcept],
    *,
    level: float = 0.5,
    strongest: int = 50,
    background: int = 20_000,
    seq_len: int = 256,
    corpus_tokens: int | None = None,
    heldout_tokens: int = 200_000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Activity:
    """Activations of `concepts` over the training split and over the first `heldout_tokens` of the held-out split.

    level: the share of masked tokens. strongest, background: numbers of chunks in the result. seq_len: tokens per
    sequence, rounded up to whole diffusion blocks and limited by the context. corpus_tokens: read only the first so
    many tokens of the training split. seed: of the masks. progress: called as (stage, done, total).

    Memory does not grow with the corpus. Raises `UserError` for a corpus of another tokenizer, concepts that the model
    does not have, a level outside (0, 1], and weights that are not finite.
    """
    store.check_tokenizer(bundle.tokenizer.sha256)
    for concept in concepts:
        check_concepts(bundle.config, concept.head, [concept.concept_id])
    if not concepts:
        raise UserError("No concepts are given; name at least one.")
    if not 0 < level <= 1:
        raise UserError(f"level is {level:g}, but the share of masked tokens must be above 0 and at most 1.")
    check_weights(bundle.params, bundle.name)
    block = bundle.config.diff_block_size
    seq_len = min(-(-seq_len // block) * block, bundle.config.block_size // block * block)
    start, end = store.split("train")
    end = end if corpus_tokens is None else min(end, start + corpus_tokens)
    first, last = store.chunks_between(start, end)
    reader = _ActivityReader(bundle, store, concepts, level, seq_len)
    best = np.full((len(concepts), strongest), -1, np.int64), np.full((len(concepts), strongest), -np.inf, np.float32)
    total: Moments | None = None
    for numbers, activations, moments in reader.read((start, end), seed, progress, "corpus"):
        best = _merge_strongest(*best, numbers, activations)
        total = moments if total is None else Moments(*(a + b for a, b in zip(total, moments)))
    if total is None or not total.seen:
        raise UserError(f"The training split of {store.folder} has no masked token to read; make a larger corpus.")
    heldout, heldout_activation = [np.zeros(0, np.int64)], [np.zeros((0, len(concepts)), np.float32)]
    heldout_start, heldout_end = store.split("heldout")
    heldout_end = min(heldout_end, heldout_start + heldout_tokens)
    # Another seed: the held-out masks are independent of those with which names are made.
    for numbers, activations, _ in reader.read((heldout_start, heldout_end), seed + 1, progress, "held-out"):
        heldout.append(numbers)
        heldout_activation.append(activations)
    return Activity(
        tuple(concepts),
        *best,
        total.a / total.seen,
        total.correlation(),
        np.unique(np.linspace(first, last - 1, min(background, last - first)).astype(np.int64)),
        np.concatenate(heldout),
        np.concatenate(heldout_activation),
        end - start + heldout_end - heldout_start,
        level,
    )


class _PartialChunk(NamedTuple):
    """A chunk of which more tokens may follow: its number (−1 for none), activation sums (J,) and masked positions."""

    number: int
    sums: np.ndarray
    positions: float


@dataclass(frozen=True)
class _ActivityReader:
    """Reads spans of a corpus in batches and yields the activations of chunks."""

    bundle: Bundle
    store: Corpus
    concepts: Sequence[SourceConcept]
    level: float
    seq_len: int

    def read(
        self, span: tuple[int, int], seed: int, progress: Progress, stage: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Moments]]:
        """For each batch of the tokens [start, end): chunk numbers (S,), activations (S, J) and the batch's moments.

        A chunk that continues in the next batch is held back and comes, whole, with the batch that contains its end.
        """
        size = max(1, _BATCH_TOKENS // self.seq_len)
        batches = -(-(span[1] - span[0]) // (self.seq_len * size))
        partial_chunk, key = self._no_chunk(), jax.random.key(seed)
        for index, (tokens, chunk) in enumerate(stream_tokens(self.store, *span, self.seq_len, size)):
            # A key per batch: the masks depend on the seed and the batch alone, whatever was read before.
            numbers, sums, counts, moments = self._batch(tokens, chunk, jax.random.fold_in(key, index))
            if len(numbers) and partial_chunk.number == numbers[0]:
                sums[0] += partial_chunk.sums
                counts[0] += partial_chunk.positions
            elif partial_chunk.positions:  # the held-back chunk ended exactly at the end of the last batch
                numbers = np.append(partial_chunk.number, numbers)
                sums = np.vstack([partial_chunk.sums, sums])
                counts = np.append(partial_chunk.positions, counts)
            last = _PartialChunk(int(numbers[-1]), sums[-1], counts[-1]) if len(numbers) else self._no_chunk()
            if index + 1 < batches:
                partial_chunk, numbers, sums, counts = last, numbers[:-1], sums[:-1], counts[:-1]
            masked = counts > 0  # a chunk without a masked position has no activation
            yield numbers[masked], (sums[masked] / counts[masked, None]).astype(np.float32), moments
            progress(stage, index + 1, batches)

    def _batch(
        self, tokens: np.ndarray, chunk: np.ndarray, key: jax.Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Moments]:
        """Chunk numbers (S,), activation sums (S, J), masked positions (S,) and moments of a batch, in float64.

        The compiled program takes the concepts head by head; here they are put back in their order.
        """
        places = [[j for j, concept in enumerate(self.concepts) if concept.head == head] for head in HEADS]
        ids = [jnp.asarray([self.concepts[j].concept_id for j in head], jnp.int32) for head in places]
        order = np.argsort([j for head in places for j in head])
        numbers = np.unique(chunk[chunk >= 0])
        # Numbers within the batch: they are below the number of tokens, a static bound for the segment sums.
        local = np.where(chunk >= 0, np.searchsorted(numbers, chunk), -1).astype(np.int32)
        sums, counts, moments = jax.device_get(
            chunk_activations(
                self.bundle.params,
                tokens,
                local,
                key,
                np.float32(self.level),
                *ids,
                config=self.bundle.config,
                compute=self.bundle.compute,
            )
        )
        a, square, product = moments.a[order], moments.a_square[order], moments.product[order]
        moments = Moments(*(np.asarray(v, np.float64) for v in moments._replace(a=a, a_square=square, product=product)))
        n = len(numbers)
        return numbers, sums[:n, order].astype(np.float64), counts[:n].astype(np.float64), moments

    def _no_chunk(self) -> _PartialChunk:
        return _PartialChunk(-1, np.zeros(len(self.concepts)), 0.0)


def _merge_strongest(
    numbers: np.ndarray, values: np.ndarray, new_numbers: np.ndarray, new_values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The n largest of values (J, n) with chunk numbers (J, n), and of new chunks (S,) with values (S, J).

    The sort is stable, so of equal values the one read first stays and the result does not depend on the batch size.
    """
    J, n = numbers.shape
    numbers = np.concatenate([numbers, np.broadcast_to(new_numbers, (J, len(new_numbers)))], axis=1)
    values = np.concatenate([values, new_values.T], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(values, order, axis=1)

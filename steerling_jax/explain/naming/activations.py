"""Activations of a head's concepts in whole chunks of a corpus, every position of which is read under a mask.

A chunk's activation is the mean over its positions, whose rows are those of `masked_rows`. In `activity`, a chunk of
which the telling word happens not to be masked counts as inactive; here it does not.

Legend: J concepts, m chunks, B sequences, T positions, N = B·T, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import check_concepts
from steerling_jax.corpus.reader import Corpus
from steerling_jax.corpus.stream import stream_tokens
from steerling_jax.errors import UserError
from steerling_jax.explain.chunk_activations import concept_activations
from steerling_jax.explain.masked_rows import rows_under_masks
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

_BATCH_TOKENS = 4096
OfBatch = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # see `means_of_chunks`
_SPAN_TOKENS, _MAX_SPANS = 4 * _BATCH_TOKENS, 32  # of the spans into which a sample of a split is divided


def sample_chunks(store: Corpus, split: str, tokens: int) -> list[tuple[int, int]]:
    """Half-open ranges of chunks with about `tokens` tokens of a split in all, spread evenly over it.

    A corpus is sorted by source, so its first tokens would be of one kind. Raises `UserError` for an empty split.
    """
    start, end = store.split(split)
    first, last = store.chunks_between(start, end)
    if first == last:
        raise UserError(
            f"The corpus {store.folder} has no {split} documents; names are chosen on the training split and scored on "
            "the held-out one, so prepare it with a --heldout-share above 0."
        )
    if tokens >= end - start:
        return [(first, last)]
    ranges = []
    spans = min(max(tokens // _SPAN_TOKENS, 4), _MAX_SPANS)
    for at in np.linspace(start, end, spans, endpoint=False).astype(int).tolist():
        low, high = store.chunks_between(at, min(at + max(tokens // spans, 1), end))
        low = max(low, ranges[-1][1] if ranges else first)  # a long chunk may reach into the next range
        if high > low:
            ranges.append((low, high))
    return ranges


def chunk_means(
    bundle: Bundle,
    store: Corpus,
    head: Head,
    ids: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    *,
    seq_len: int = 256,
    seed: int = 0,
    progress: Progress = no_progress,
    stage: str = "reading",
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (m,) of the chunks in `ranges`, and the activations (m, J) float32 of the concepts `ids` (J,).

    seq_len: tokens per sequence, rounded up to whole diffusion blocks and limited by the context. seed: of the masks.
    Raises `UserError` for a corpus of another tokenizer and for concepts that the model does not have.
    """
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_concepts(bundle.config, head, ids)
    block = bundle.config.diff_block_size
    seq_len = min(-(-seq_len // block) * block, bundle.config.block_size // block * block)
    key, concepts = jax.random.key(seed), jnp.asarray(ids, jnp.int32)

    def of_batch(tokens: np.ndarray, local: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        at = jax.random.fold_in(key, number)
        run = {"head": head, "config": bundle.config, "compute": bundle.compute}
        return jax.device_get(_chunk_sums(bundle.params, tokens, local, at, concepts, **run))

    return means_of_chunks(store, ranges, len(ids), of_batch, seq_len=seq_len, progress=progress, stage=stage)


def means_of_chunks(
    store: Corpus,
    ranges: Sequence[tuple[int, int]],
    width: int,
    of_batch: OfBatch,
    *,
    seq_len: int,
    progress: Progress = no_progress,
    stage: str = "reading",
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (m,) of the chunks in `ranges`, and the means (m, width) float32 of what `of_batch` gives at their
    positions.

    of_batch: from tokens (B, T), the chunk of each, numbered from 0 within the batch (−1 for none), and the number of
    the batch, to sums (n, width) and counts (n,) of its chunks. seq_len: T.
    """
    size = max(1, _BATCH_TOKENS // seq_len)
    numbers, means = [np.zeros(0, np.int64)], [np.zeros((0, width), np.float32)]
    spans = [store.read("chunk_spans", low, high) for low, high in ranges]
    total = sum(-(-int(span[-1, 1] - span[0, 0]) // (seq_len * size)) for span in spans)
    done = 0
    for (low, high), span in zip(ranges, spans, strict=True):
        sums, counts = np.zeros((high - low, width)), np.zeros(high - low)
        for tokens, chunk in stream_tokens(store, int(span[0, 0]), int(span[-1, 1]), seq_len, size):
            present = np.unique(chunk[chunk >= 0])
            local = np.where(chunk >= 0, np.searchsorted(present, chunk), -1).astype(np.int32)
            batch_sums, batch_counts = of_batch(tokens, local, done)
            # A chunk that a batch cuts gets its sums from both batches.
            sums[present - low] += batch_sums[: len(present)]
            counts[present - low] += batch_counts[: len(present)]
            done += 1
            progress(stage, done, total)
        numbers.append(np.arange(low, high)[counts > 0])
        means.append((sums[counts > 0] / counts[counts > 0, None]).astype(np.float32))
    return np.concatenate(numbers), np.concatenate(means)


@partial(jax.jit, static_argnames=("head", "config", "compute"))
def _chunk_sums(
    params: Params,
    tokens: jax.Array,
    local: jax.Array,
    key: jax.Array,
    ids: jax.Array,
    *,
    head: Head,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """Activation sums (N, J) and positions (N,) of the chunks of a batch; tokens, local (B, T) as in
    `chunk_activations`."""
    B, T = tokens.shape
    hidden = rows_under_masks(params, tokens, key, config=config, compute=compute).hidden.reshape(B * T, -1)
    counted = (local >= 0).reshape(-1).astype(jnp.float32)
    activations = concept_activations(params, hidden, ids, head, config, compute) * counted[:, None]
    segment = jnp.where(counted > 0, local.reshape(-1), B * T)  # out of range, which segment_sum drops
    return jax.ops.segment_sum(activations, segment, B * T), jax.ops.segment_sum(counted, segment, B * T)

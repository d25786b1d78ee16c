"""Where concepts act in a corpus: their activations at masked positions, streamed, for many concepts in one pass.

An activation is what goes into the features: the sigmoid of the logit where the concept is kept, else 0. A chunk's is
the mean over its masked positions, as each block is denoised after clean earlier ones.

Legend: B sequences, T positions, N = B·T, J concepts asked for, C known concepts, K kept ones, S chunks, n strongest
chunks, h held-out chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.concepts.catalogue import Head
from steerling_jax.concepts.heads import check_concepts, view_concepts
from steerling_jax.corpus.reader import Corpus
from steerling_jax.corpus.stream import stream_tokens
from steerling_jax.errors import UserError
from steerling_jax.explain.concept_gradients import SourceConcept
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.noise import mask_tokens
from steerling_jax.progress import Progress, no_progress

_BATCH_TOKENS = 4096


class Moments(NamedTuple):
    """Sums over masked positions of chunks: how many were seen (), of a_j and a_j² (J,), of k_c and k_c² (C,), of
    a_j·k_c (J, C); a the activations asked for, k those of the known concepts. Of JAX inside a program, of NumPy once
    fetched."""

    seen: Any
    a: Any
    a_square: Any
    k: Any
    k_square: Any
    product: Any

    def correlation(self) -> np.ndarray:
        """(J, C) between activations and known concepts' activations, 0 where one of them does not vary."""
        n = np.maximum(self.seen, 1)
        mean_a, mean_k = self.a / n, self.k / n
        spread_a = np.sqrt(np.maximum(self.a_square / n - mean_a**2, 0))
        spread_k = np.sqrt(np.maximum(self.k_square / n - mean_k**2, 0))
        covariance = self.product / n - np.outer(mean_a, mean_k)
        scale = np.outer(spread_a, spread_k)
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


@dataclass(frozen=True)
class Activity:
    """What a pass over the corpus found of J concepts.

    strongest, strength (J, n): the training split's chunks of largest activation, best first (−1 where there are
    fewer), and that activation. mean (J,): over masked positions. correlation (J, C): with the known concepts.
    background: numbers of training chunks evenly spaced over what was read. heldout (h,): numbers of held-out chunks,
    heldout_activation (h, J). tokens: how many were read, held-out ones included. level: share of masked tokens.
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
    tell: Progress = no_progress,
) -> Activity:
    """Reads the training split, or its first `corpus_tokens`, and the first `heldout_tokens` of the held-out split.

    Memory does not grow with the corpus. Raises `UserError` for a corpus of another tokenizer, concepts that the model
    does not have, a level outside (0, 1], and weights that are no numbers.
    """
    store.check_tokenizer(bundle.tokenizer.sha256)
    for one in concepts:
        check_concepts(bundle.config, one.head, [one.concept_id])
    if not concepts:
        raise UserError("Name at least one concept.")
    if not 0 < level <= 1:
        raise UserError(f"level is {level:g}, but the share of masked tokens is above 0 and at most 1.")
    check_weights(bundle.params, bundle.name)
    block = bundle.config.diff_block_size
    seq_len = min(-(-seq_len // block) * block, bundle.config.block_size // block * block)
    start, end = store.split("train")
    end = end if corpus_tokens is None else min(end, start + corpus_tokens)
    first, last = store.chunks_between(start, end)
    best = np.full((len(concepts), strongest), -1, np.int64), np.full((len(concepts), strongest), -np.inf, np.float32)
    total: Moments | None = None
    for numbers, means, moments in _passes(bundle, store, concepts, (start, end), level, seq_len, seed, tell, "corpus"):
        best = _merged(*best, numbers, means)
        total = moments if total is None else Moments(*(a + b for a, b in zip(total, moments)))
    if total is None or not total.seen:
        raise UserError(f"The training split of {store.folder} has no masked token to look at: make a larger corpus.")
    held, values = [], []
    span = store.split("heldout")
    span = span[0], min(span[1], span[0] + heldout_tokens)
    for numbers, means, _ in _passes(bundle, store, concepts, span, level, seq_len, seed + 1, tell, "held-out"):
        held.append(numbers)
        values.append(means)
    return Activity(
        tuple(concepts),
        *best,
        total.a / total.seen,
        total.correlation(),
        np.unique(np.linspace(first, last - 1, min(background, last - first)).astype(np.int64)),
        np.concatenate(held) if held else np.zeros(0, np.int64),
        np.concatenate(values) if values else np.zeros((0, len(concepts)), np.float32),
        end - start + span[1] - span[0],
        level,
    )


def _passes(
    bundle: Bundle,
    store: Corpus,
    concepts: Sequence[SourceConcept],
    span: tuple[int, int],
    level: float,
    seq_len: int,
    seed: int,
    tell: Progress,
    stage: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, Moments]]:
    """Numbers (S,) of chunks that are done, their activations (S, J) in the order of `concepts`, and each batch's
    moments. A chunk that a batch cuts comes with the batch that ends it."""
    size = max(1, _BATCH_TOKENS // seq_len)
    heads = {head: [i for i, one in enumerate(concepts) if one.head == head] for head in ("known", "discovered")}
    ids = [jnp.asarray([concepts[i].concept_id for i in numbers], jnp.int32) for numbers in heads.values()]
    order = np.argsort([i for numbers in heads.values() for i in numbers])
    batches = -(-(span[1] - span[0]) // (seq_len * size))
    cut, key = (-1, np.zeros(len(concepts)), 0.0), jax.random.key(seed)
    for number, (tokens, chunk) in enumerate(stream_tokens(store, *span, seq_len, size)):
        there = np.unique(chunk[chunk >= 0])
        local = np.where(chunk >= 0, np.searchsorted(there, chunk), -1).astype(np.int32)
        sums, counts, moments = jax.device_get(
            _activity(
                bundle.params,
                tokens,
                local,
                jax.random.fold_in(key, number),
                np.float32(level),
                *ids,
                config=bundle.config,
                compute=bundle.compute,
            )
        )
        a, square, product = moments.a[order], moments.a_square[order], moments.product[order]
        moments = Moments(*(np.asarray(v, np.float64) for v in moments._replace(a=a, a_square=square, product=product)))
        sums, counts = sums[: len(there), order].astype(np.float64), counts[: len(there)].astype(np.float64)
        if len(there) and cut[0] == there[0]:
            sums[0] += cut[1]
            counts[0] += cut[2]
        elif cut[2]:  # the chunk that the last batch cut had ended there
            there, sums, counts = np.append(cut[0], there), np.vstack([cut[1], sums]), np.append(cut[2], counts)
        cut = (int(there[-1]), sums[-1], counts[-1]) if len(there) else (-1, np.zeros(len(concepts)), 0.0)
        if number + 1 < batches:
            there, sums, counts = there[:-1], sums[:-1], counts[:-1]
        done = counts > 0
        yield there[done], (sums[done] / counts[done, None]).astype(np.float32), moments
        tell(stage, number + 1, batches)


def _merged(
    numbers: np.ndarray, values: np.ndarray, new: np.ndarray, new_values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best n of (J, n) and of new chunks (S,) with values (S, J)."""
    J, n = numbers.shape
    numbers = np.concatenate([numbers, np.broadcast_to(new, (J, len(new)))], axis=1)
    values = np.concatenate([values, new_values.T], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(values, order, axis=1)


@partial(jax.jit, static_argnames=("config", "compute"))
def _activity(
    params: Params,
    tokens: jax.Array,
    local: jax.Array,
    key: jax.Array,
    level: jax.Array,
    known: jax.Array,
    discovered: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array, Moments]:
    """tokens, local (B, T): sums (N, J) and counts (N,) by chunk number `local` (−1: none), and moments. J: the known
    ids, then the discovered ones."""
    B, T = tokens.shape
    levels = jnp.full((B, -(-T // config.diff_block_size)), level)
    noisy, masked = mask_tokens(key, tokens, levels, config)
    hidden = denoise(params, tokens, noisy, config=config, compute=compute, clean_context=True).reshape(B * T, -1)
    counted = (masked & (local >= 0)).reshape(-1).astype(jnp.float32)
    heads: tuple[tuple[Head, jax.Array], ...] = (("known", known), ("discovered", discovered))
    asked = [_kept(params, hidden, ids, head, config, compute) for head, ids in heads if len(ids)]
    a = jnp.concatenate(asked, axis=1) * counted[:, None]
    segment = jnp.where(counted > 0, local.reshape(-1), B * T)
    sums = jax.ops.segment_sum(a, segment, B * T)
    return sums, jax.ops.segment_sum(counted, segment, B * T), _moments(params, hidden, a, counted, config, compute)


def _kept(
    params: Params, hidden: jax.Array, ids: jax.Array, head: Head, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Activations (N, J) of concepts ids (J,), 0 where a concept is not among those kept for the features."""
    view, spec = view_concepts(params, hidden, head, config, compute)
    logits = matmul_t(view.query, jnp.take(view.keys, ids, axis=0), compute.operands) * view.scale
    logits = jnp.clip(logits, -bn.LOGIT_LIMIT, bn.LOGIT_LIMIT)
    if spec.topk_features is None:
        return jax.nn.sigmoid(logits)
    least = bn.top_concepts(view, spec.topk_features, spec.block, compute.operands)[0][:, -1:]
    return jnp.where(logits >= least - 1e-5, jax.nn.sigmoid(logits), 0.0)  # a product's rounding depends on its shape


def _moments(
    params: Params, hidden: jax.Array, a: jax.Array, counted: jax.Array, config: ModelConfig, compute: Compute
) -> Moments:
    view, spec = view_concepts(params, hidden, "known", config, compute)
    logits, index = bn.top_concepts(view, spec.topk_features or bn.REPORTED_WITHOUT_TOPK, spec.block, compute.operands)
    k = jax.nn.sigmoid(logits) * counted[:, None]

    def add(product: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, at = one
        return product + jax.ops.segment_sum(a * weight[:, None], at, spec.n_concepts), None

    product, _ = jax.lax.scan(add, jnp.zeros((spec.n_concepts, a.shape[1])), (k.T, index.T))
    flat, at = k.reshape(-1), index.reshape(-1)
    return Moments(
        counted.sum(),
        a.sum(axis=0),
        jnp.square(a).sum(axis=0),
        jax.ops.segment_sum(flat, at, spec.n_concepts),
        jax.ops.segment_sum(flat**2, at, spec.n_concepts),
        product.T,
    )

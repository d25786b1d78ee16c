"""Figures of held-out texts: the bound in nats, what each part of the decomposition is worth, evidence for concepts.

The loops around `evaluation.py`, for programs: sequences in, sums over them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.corpus.labelled_chunks import bags_of, chunk_bags, chunk_positives, positives_of
from steerling_jax.corpus.reader import Corpus
from steerling_jax.evaluation.bound import SHARES, VARIANTS, likelihood_sums, presence_evidence
from steerling_jax.evaluation.probe import fit_probe
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.parallel.sharding import to_host
from steerling_jax.progress import Progress, no_progress

LEVEL = 0.5  # share of masked tokens at which concepts are detected
POSITIVES = 20  # chunks with a concept, for its AUC to count
_BATCH_TOKENS = 4096
_PROBE_CHUNKS = 100_000


def likelihood(
    params: Any,
    held: HeldOut,
    config: ModelConfig,
    compute: Compute,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """The bound in nats a token and bits a byte with its standard error, `cost_*` in nats a token, and shares of
    logits."""
    totals = dict[str, float]()
    size = max(1, _BATCH_TOKENS // held.tokens.shape[1])
    for sums in batch_sums(params, held, config, compute, size=size, draws=draws, seed=seed, progress=progress):
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return _figures(totals, held)


def batch_sums(
    params: Any,
    held: HeldOut,
    config: ModelConfig,
    compute: Compute,
    *,
    size: int,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Iterator[dict[str, float]]:
    """`evaluation.likelihood_sums` of `size` sequences at a time: draw by draw, in the order of the sequences."""
    key, batches = jax.random.key(seed), -(-len(held.tokens) // size)
    pad = -held.tokens.shape[1] % config.diff_block_size
    for draw in range(draws):
        for number, (tokens, valid, _, _) in enumerate(held.batches(size)):
            tokens, valid = (np.pad(a, ((0, 0), (0, pad))) for a in (tokens, valid))
            at = jax.random.fold_in(jax.random.fold_in(key, draw), number)
            sums = jax.device_get(likelihood_sums(params, tokens, valid, at, config=config, compute=compute))
            yield {name: float(value) for name, value in sums.items()}
            progress("likelihood", draw * batches + number + 1, draws * batches)


def _figures(totals: Mapping[str, float], held: HeldOut) -> dict[str, Any]:
    tokens, blocks = totals["tokens"], totals["blocks"]
    mean = totals["full"] / blocks
    # Of the estimate for this text: blocks' nats differ by text and by mask, so this is rather too large.
    error = math.sqrt(max(totals["full_square"] / blocks - mean**2, 0.0) / blocks) * blocks / tokens
    found: dict[str, Any] = {"nats_per_token": totals["full"] / tokens}
    if held.byte_count:
        scale = held.token_count / held.byte_count / math.log(2)
        found |= {"bits_per_byte": found["nats_per_token"] * scale, "bits_per_byte_error": error * scale}
    for name in VARIANTS[1:]:
        if name in totals:
            found[name.replace("without", "cost")] = (totals[name] - totals["full"]) / tokens
    if "share_known" in totals:
        shares = {name: totals[f"share_{name}"] / totals["masked"] for name in SHARES}
        found["concept_share"] = shares["known"] + shares["discovered"]
        found |= {f"share_{name}": share for name, share in shares.items()}
        found["best_concept_share"] = 1 - totals["best_share_epsilon"] / totals["masked"]
    return found | {"tokens": held.token_count}


@dataclass(frozen=True)
class Detections:
    """For m chunks, by their numbers `chunk` (m,): evidence (m, C) float64, positive (m, C) bool, and `visible`, what
    was left of their text."""

    evidence: np.ndarray
    positive: np.ndarray
    chunk: np.ndarray
    visible: Bags


def detect(
    params: Any,
    held: HeldOut,
    store: Corpus,
    config: ModelConfig,
    compute: Compute,
    level: float,
    *,
    seed: int = 1,
    progress: Progress = no_progress,
) -> Detections:
    """Evidence for each concept in each chunk that has a masked token; the pieces of a cut chunk are added up."""
    assert config.concept is not None
    size, pad = max(1, _BATCH_TOKENS // held.tokens.shape[1]), -held.tokens.shape[1] % config.diff_block_size
    chunks = held.chunk_numbers
    evidence = np.zeros((len(chunks), config.concept.n_concepts))
    masked_count = np.zeros(len(chunks), np.int64)
    seen_tokens: list[np.ndarray] = []
    seen_chunks: list[np.ndarray] = []
    for number, (tokens, _, index, first) in enumerate(held.batches(size)):
        tokens, index = np.pad(tokens, ((0, 0), (0, pad))), np.pad(index, ((0, 0), (0, pad)), constant_values=-1)
        at = jax.random.fold_in(jax.random.key(seed), number)
        found, masked = to_host(
            presence_evidence(
                params, tokens, index, np.float32(level), at, chunks=held.chunks, config=config, compute=compute
            )
        )
        chunk = first[:, None] + np.arange(held.chunks)
        real = np.broadcast_to(np.arange(held.chunks) <= index.max(axis=1, keepdims=True), chunk.shape)
        np.add.at(evidence, np.searchsorted(chunks, chunk[real]), found[real])
        of_token = np.searchsorted(chunks, first[:, None] + index)
        np.add.at(masked_count, of_token[masked & (index >= 0)], 1)
        left = ~masked & (index >= 0)
        seen_tokens.append(tokens[left])
        seen_chunks.append(of_token[left])
        progress(f"detection at t = {level:g}", number + 1, -(-len(held.tokens) // size))
    kept = np.flatnonzero(masked_count)
    visible = Bags.grouped(np.concatenate(seen_tokens), np.concatenate(seen_chunks), len(chunks))
    positive = positives_of(store, chunks[kept], config.concept.n_concepts)
    return Detections(evidence[kept], positive, chunks[kept], visible.take(kept))


def probe_scores(
    found: Detections, store: Corpus, level: float, progress: Progress = no_progress
) -> dict[str, np.ndarray]:
    """Scores (m, C) of the same chunks by probes trained on the training split's labels, which see a chunk's whole text
    or only what this noise left (they see nothing of other chunks): `probe_whole_text`, `probe_visible_text`."""
    start, end = store.chunks_between(*store.split("train"))
    end = min(end, start + _PROBE_CHUNKS)
    texts, labels = chunk_bags(store, start, end), chunk_positives(store, start, end, found.positive.shape[1])
    whole = bags_of(store, found.chunk)
    scores = {}
    for name, hidden, bags in (("probe_whole_text", 0.0, whole), ("probe_visible_text", level, found.visible)):
        scores[name] = fit_probe(texts, labels, store.vocab_size, hidden=hidden, progress=progress, name=name)(bags)
    return scores

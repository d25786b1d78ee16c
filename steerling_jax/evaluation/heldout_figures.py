"""Figures of a model on held-out texts: the likelihood bound, the cost of leaving out each part, evidence for concepts.

These are the loops over batches around the compiled functions in `bound`. The likelihood of a decoder is exact, by the
function in `exact_likelihood`.
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
from steerling_jax.evaluation.exact_likelihood import first_ids, row_sums
from steerling_jax.evaluation.probe import fit_probe
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.backbone import decoder_backbone
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.parallel.sharding import to_host
from steerling_jax.progress import Progress, no_progress

LEVEL = 0.5  # the share of masked tokens at which concepts are detected
POSITIVES = 20  # the number of chunks with a concept from which on its area under the ROC curve counts
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
    """The likelihood bound on held-out texts and the parts' contributions to it, over `draws` random maskings.

    nats_per_token, bits_per_byte, bits_per_byte_error (a standard error); cost_*: nats a token that the bound loses
    without a part; share_*: the part's share in the logit of the true token; concept_share: of known and discovered
    concepts together; best_concept_share: the same for the most likely token.
    """
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
    """`bound.likelihood_sums` of each batch of `size` sequences, draw by draw, in the order of the sequences."""
    key, batches = jax.random.key(seed), -(-len(held.tokens) // size)
    pad = -held.tokens.shape[1] % config.diff_block_size
    for draw in range(draws):
        for number, (tokens, valid, _, _) in enumerate(held.batches(size)):
            tokens, valid = (np.pad(a, ((0, 0), (0, pad))) for a in (tokens, valid))
            at = jax.random.fold_in(jax.random.fold_in(key, draw), number)
            sums = jax.device_get(likelihood_sums(params, tokens, valid, at, config=config, compute=compute))
            yield {name: float(value) for name, value in sums.items()}
            progress("likelihood", draw * batches + number + 1, draws * batches)


def exact_likelihood(
    params: Any, held: HeldOut, config: DecoderConfig, compute: Compute, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """The likelihood of held-out texts under a decoder, which is exact and needs no draws.

    Every sequence is scored by itself, and its first token after the id that begins a text: nats_per_token,
    bits_per_byte, tokens. Raises `UserError` for a model without such an id.
    """
    size, first, nats = max(1, _BATCH_TOKENS // held.tokens.shape[1]), first_ids(config), 0.0
    starts, backbone = np.ones(size, np.int32), decoder_backbone(config, compute)
    for number, (tokens, valid, _, _) in enumerate(held.batches(size)):
        tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=first[0])
        lengths = 1 + valid.sum(axis=1).astype(np.int32)
        sums = to_host(row_sums(params, tokens, lengths, starts, backbone=backbone))
        nats += float(np.sum(sums[:, 0], dtype=np.float64))
        progress("likelihood", number + 1, -(-len(held.tokens) // size))
    figures: dict[str, Any] = {"nats_per_token": nats / held.token_count}
    if held.byte_count:
        figures["bits_per_byte"] = nats / math.log(2) / held.byte_count
    return figures | {"tokens": held.token_count}


def _figures(totals: Mapping[str, float], held: HeldOut) -> dict[str, Any]:
    tokens, blocks = totals["tokens"], totals["blocks"]
    mean = totals["full"] / blocks
    # The standard error of the estimate for this text. The blocks' nats differ by text as well as by mask, and only the
    # masks are random, so this overestimates it.
    error = math.sqrt(max(totals["full_square"] / blocks - mean**2, 0.0) / blocks) * blocks / tokens
    figures: dict[str, Any] = {"nats_per_token": totals["full"] / tokens}
    if held.byte_count:
        scale = held.token_count / held.byte_count / math.log(2)
        figures |= {"bits_per_byte": figures["nats_per_token"] * scale, "bits_per_byte_error": error * scale}
    for name in VARIANTS[1:]:
        if name in totals:
            figures[name.replace("without", "cost")] = (totals[name] - totals["full"]) / tokens
    if "share_known" in totals:
        shares = {name: totals[f"share_{name}"] / totals["masked"] for name in SHARES}
        figures["concept_share"] = shares["known"] + shares["discovered"]
        figures |= {f"share_{name}": share for name, share in shares.items()}
        figures["best_concept_share"] = 1 - totals["best_share_epsilon"] / totals["masked"]
    return figures | {"tokens": held.token_count}


@dataclass(frozen=True)
class Detections:
    """Evidence for concepts in m chunks of held-out text.

    evidence (m, C) float64; positive (m, C) bool, the labels; chunk (m,), the chunks' numbers in the corpus store;
    visible: the tokens of each chunk that were not masked.
    """

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
    """The evidence for each concept in each chunk that has a masked token, at noise `level`.

    A chunk that the end of a sequence cuts in two has the sum of the evidence of its pieces.
    """
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
        of_batch, masked = to_host(
            presence_evidence(
                params, tokens, index, np.float32(level), at, chunks=held.chunks, config=config, compute=compute
            )
        )
        chunk = first[:, None] + np.arange(held.chunks)
        real = np.broadcast_to(np.arange(held.chunks) <= index.max(axis=1, keepdims=True), chunk.shape)
        np.add.at(evidence, np.searchsorted(chunks, chunk[real]), of_batch[real])
        of_token = np.searchsorted(chunks, first[:, None] + index)
        np.add.at(masked_count, of_token[masked & (index >= 0)], 1)
        unmasked = ~masked & (index >= 0)
        seen_tokens.append(tokens[unmasked])
        seen_chunks.append(of_token[unmasked])
        progress(f"detection at t = {level:g}", number + 1, -(-len(held.tokens) // size))
    with_masks = np.flatnonzero(masked_count)
    visible = Bags.grouped(np.concatenate(seen_tokens), np.concatenate(seen_chunks), len(chunks))
    positive = positives_of(store, chunks[with_masks], config.concept.n_concepts)
    return Detections(evidence[with_masks], positive, chunks[with_masks], visible.take(with_masks))


def probe_scores(
    detections: Detections, store: Corpus, level: float, progress: Progress = no_progress
) -> dict[str, np.ndarray]:
    """Scores (m, C) of the same chunks by probes, which are trained on the labels of the training split.

    A probe reads the tokens of one chunk: all of them (`probe_whole_text`) or those that the noise left unmasked
    (`probe_visible_text`).
    """
    start, end = store.chunks_between(*store.split("train"))
    end = min(end, start + _PROBE_CHUNKS)
    texts, labels = chunk_bags(store, start, end), chunk_positives(store, start, end, detections.positive.shape[1])
    whole = bags_of(store, detections.chunk)
    scores = {}
    for name, hidden, bags in (("probe_whole_text", 0.0, whole), ("probe_visible_text", level, detections.visible)):
        scores[name] = fit_probe(texts, labels, store.vocab_size, hidden=hidden, progress=progress, name=name)(bags)
    return scores

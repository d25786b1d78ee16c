"""Held-out figures of a model: bits per byte, what the concepts are worth, and how well they are detected.

Bits per byte is the likelihood bound of *all* held-out tokens, special ones included, over the bytes of the text they
stand for: closing a chunk costs bits and has no bytes. `ngrams.py` counts in the same way. Costs are nats a token that
leaving a part out of the prediction adds; a bottleneck that nothing flows through shows as a large cost of leaving
epsilon out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.config import Compute, ModelConfig
from steerling_jax.evaluation import SHARES, VARIANTS, likelihood_sums, presence_evidence
from steerling_jax.io.corpus import CorpusStore
from steerling_jax.io.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.io.tokenizer import Tokenizer
from steerling_jax.probe import Bags, fit_probe

from .detection import macro_auc
from .heldout import HeldOut, read_heldout
from .ngrams import count_ngrams
from .run_config import RunConfig

QUICK_TOKENS = 16_384  # of the held-out split, for the figures that are taken during training
QUICK_POSITIVES = 10  # chunks with a concept, for its AUC to count then
LEVEL = 0.5  # share of masked tokens at which concepts are detected
POSITIVES = 20
_BATCH_TOKENS = 4096
_PROBE_CHUNKS = 100_000

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def evaluator(run: RunConfig, store: CorpusStore) -> Callable[[Any], Mapping[str, Any]]:
    """For the training loop: parameters to a few figures, from the same held-out sequences and masks each time."""
    quick = read_heldout(store, run.data.seq_len, most_tokens=QUICK_TOKENS)

    def evaluate(params: Any) -> Mapping[str, Any]:
        found = likelihood(params, quick, run.model, run.compute)
        if run.model.concept is not None:
            detected = detect(params, quick, store, run.model, run.compute, LEVEL)
            auc = macro_auc(detected.evidence, detected.positive, QUICK_POSITIVES)
            found |= {"auc": auc.macro, "auc_concepts": len(auc.concepts)}
        return found

    return evaluate


def evaluate_full(
    params: Any, config: ModelConfig, compute: Compute, store: CorpusStore, *, seq_len: int | None = None,
    draws: int = 2, levels: tuple[float, ...] = (LEVEL,), baselines: bool = True, most_tokens: int | None = None,
    tokenizer: Tokenizer | None = None, progress: Progress = _silent,
) -> dict[str, Any]:  # fmt: skip
    """Every held-out token (or about `most_tokens`), `draws` masks each, in sequences of `seq_len` (default: the
    context); concept detection at each level of noise; n-grams and bag-of-words probes as `baselines`. Values are
    JSON's."""
    seq_len = seq_len or config.block_size
    held = read_heldout(store, seq_len, most_tokens=most_tokens, tokenizer=tokenizer)
    found: dict[str, Any] = likelihood(params, held, config, compute, draws=draws, progress=progress)
    found |= {"bytes": held.byte_count, "seq_len": seq_len, "draws": draws}
    if baselines:
        found["baselines"] = ngram_baselines(store, held, progress)
    if config.concept is not None:
        found["detection"] = {
            f"{level:g}": detection_report(params, held, store, config, compute, level, baselines, progress)
            for level in levels
        }
    return found


def likelihood(
    params: Any, held: HeldOut, config: ModelConfig, compute: Compute, *, draws: int = 1, seed: int = 0,
    progress: Progress = _silent,
) -> dict[str, Any]:  # fmt: skip
    """The bound in nats a token and bits a byte with its standard error, `cost_*` in nats a token, and shares of
    logits."""
    size = max(1, _BATCH_TOKENS // held.tokens.shape[1])
    key, totals = jax.random.key(seed), dict[str, float]()
    steps = draws * -(-len(held.tokens) // size)
    pad = -held.tokens.shape[1] % config.diff_block_size
    for draw in range(draws):
        for number, (tokens, valid, _, _) in enumerate(held.batches(size)):
            tokens, valid = (np.pad(a, ((0, 0), (0, pad))) for a in (tokens, valid))
            at = jax.random.fold_in(jax.random.fold_in(key, draw), number)
            sums = jax.device_get(likelihood_sums(params, tokens, valid, at, config=config, compute=compute))
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            progress("likelihood", draw * (steps // draws) + number + 1, steps)
    return _figures(totals, held)


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
class Detected:
    """For m chunks: evidence (m, C) float64, positive (m, C) bool, and `visible`, what was left of their text."""

    evidence: np.ndarray
    positive: np.ndarray
    chunk: np.ndarray
    visible: Bags


def detect(
    params: Any, held: HeldOut, store: CorpusStore, config: ModelConfig, compute: Compute, level: float, *,
    seed: int = 1, progress: Progress = _silent,
) -> Detected:  # fmt: skip
    """Evidence for each concept in each chunk that has a masked token; the pieces of a cut chunk are added up."""
    assert config.concept is not None
    size = max(1, _BATCH_TOKENS // held.tokens.shape[1])
    low = int(held.first_chunk.min())
    high = int(held.first_chunk.max()) + held.chunks
    evidence = np.zeros((high - low, config.concept.n_concepts))
    masked_count = np.zeros(high - low, np.int64)
    seen_tokens: list[np.ndarray] = []
    seen_chunks: list[np.ndarray] = []
    for number, (tokens, _, index, first) in enumerate(held.batches(size)):
        at = jax.random.fold_in(jax.random.key(seed), number)
        found, masked = jax.device_get(
            presence_evidence(
                params, tokens, index, np.float32(level), at, chunks=held.chunks, config=config, compute=compute
            )
        )
        chunk = first[:, None] - low + np.arange(held.chunks)
        real = np.broadcast_to(np.arange(held.chunks) <= index.max(axis=1, keepdims=True), chunk.shape)
        np.add.at(evidence, chunk[real], found[real])
        of_token = np.where(index >= 0, first[:, None] - low + index, -1)
        np.add.at(masked_count, of_token[masked & (index >= 0)], 1)
        left = ~masked & (index >= 0)
        seen_tokens.append(tokens[left])
        seen_chunks.append(of_token[left])
        progress(f"detection at t = {level:g}", number + 1, -(-len(held.tokens) // size))
    kept = np.flatnonzero(masked_count)
    visible = Bags.grouped(np.concatenate(seen_tokens), np.concatenate(seen_chunks), high - low)
    positive = chunk_positives(store, low, min(high, store.chunk_count), config.concept.n_concepts)
    return Detected(evidence[kept], positive[kept], low + kept, visible.take(kept))


def detection_report(
    params: Any, held: HeldOut, store: CorpusStore, config: ModelConfig, compute: Compute, level: float, probes: bool,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Macro AUC over concepts with at least 20 positives: the model, random scores and, trained on the training split's
    labels, probes that see a chunk's whole text or only what this noise leaves (they see nothing of other chunks)."""
    found = detect(params, held, store, config, compute, level, progress=progress)
    auc = macro_auc(found.evidence, found.positive, POSITIVES)
    noise = np.random.default_rng(0).random(found.evidence.shape)
    report: dict[str, Any] = {
        "auc": auc.macro, "auc_random": macro_auc(noise, found.positive, POSITIVES).macro,
        "concepts": len(auc.concepts), "chunks": len(found.chunk),
    }  # fmt: skip
    by_concept = {
        "positives": dict(zip(auc.concepts, auc.positives, strict=True)),
        "auc": dict(zip(auc.concepts, auc.each, strict=True)),
    }
    if probes:
        start, end = store.chunks_between(*store.split("train"))
        end = min(end, start + _PROBE_CHUNKS)
        texts, labels = chunk_bags(store, start, end), chunk_positives(store, start, end, found.positive.shape[1])
        whole = chunk_bags(store, int(found.chunk[0]), int(found.chunk[-1]) + 1).take(found.chunk - found.chunk[0])
        for name, hidden, bags in (("probe_whole_text", 0.0, whole), ("probe_visible_text", level, found.visible)):
            probe = fit_probe(texts, labels, store.vocab_size, hidden=hidden, progress=progress, name=name)
            scored = macro_auc(probe(bags), found.positive, POSITIVES)
            report[name] = scored.macro
            by_concept[name] = dict(zip(scored.concepts, scored.each, strict=True))
    names = {entry["id"]: entry["name"] for entry in store.concepts}
    report["by_concept"] = {
        names.get(c, f"concept {c}"): {key: column[c] for key, column in by_concept.items()} for c in auc.concepts
    }
    return report


def ngram_baselines(store: CorpusStore, held: HeldOut, progress: Progress = _silent) -> dict[str, Any]:
    """Nats a token and bits a byte of token trigrams and 5-grams, on the same tokens; context is not cut by sequences
    where they follow each other."""
    held_tokens = held.tokens[held.valid]
    progress("counting n-grams", 0, 1)
    counts = count_ngrams(store.tokens(*store.split("train")), 5, store.vocab_size)
    found: dict[str, Any] = {}
    for order, name in ((3, "trigram"), (5, "5-gram")):
        nats = -float(np.sum(counts.model(order).log_probabilities(held_tokens)))
        found[name] = {"nats_per_token": nats / len(held_tokens)}
        if held.byte_count:
            found[name]["bits_per_byte"] = nats / math.log(2) / held.byte_count
    progress("counting n-grams", 1, 1)
    return found

"""Held-out figures of a model: bits per byte, what the concepts are worth, and how well they are detected.

Bits per byte is the likelihood bound of *all* held-out tokens, special ones included, over the bytes of the text they
stand for: closing a chunk costs bits and has no bytes. `ngrams.py` counts in the same way. Costs are nats a token that
leaving a part out of the prediction adds; a bottleneck that nothing flows through shows as a large cost of leaving
epsilon out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.evaluation.detection import macro_auc
from steerling_jax.evaluation.heldout_figures import LEVEL, POSITIVES, detect, likelihood, probe_scores
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import Tokenizer
from steerling_jax.train.evaluation.ngrams import count_ngrams
from steerling_jax.train.run.run_config import RunConfig

QUICK_TOKENS = 16_384  # of the held-out split, for the figures that are taken during training
QUICK_POSITIVES = 10  # chunks with a concept, for its AUC to count then


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
    params: Any,
    config: ModelConfig,
    compute: Compute,
    store: CorpusStore,
    *,
    seq_len: int | None = None,
    draws: int = 2,
    levels: tuple[float, ...] = (LEVEL,),
    baselines: bool = True,
    most_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
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


def detection_report(
    params: Any,
    held: HeldOut,
    store: CorpusStore,
    config: ModelConfig,
    compute: Compute,
    level: float,
    probes: bool,
    progress: Progress,
) -> dict[str, Any]:
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
        for name, scores in probe_scores(found, store, level, progress).items():
            scored = macro_auc(scores, found.positive, POSITIVES)
            report[name] = scored.macro
            by_concept[name] = dict(zip(scored.concepts, scored.each, strict=True))
    names = {entry["id"]: entry["name"] for entry in store.concepts}
    report["by_concept"] = {
        names.get(c, f"concept {c}"): {key: column[c] for key, column in by_concept.items()} for c in auc.concepts
    }
    return report


def ngram_baselines(store: CorpusStore, held: HeldOut, progress: Progress = no_progress) -> dict[str, Any]:
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

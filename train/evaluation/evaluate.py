"""Held-out figures of a model: bits per byte, the effect of each part of the decomposition, and concept detection.

Bits per byte is the likelihood bound (of a decoder, the exact likelihood) of *all* held-out tokens, special ones
included, over the bytes of their text: tokens that end a chunk or a document cost bits and have no bytes. `ngrams.py`
counts the same way. `cost_*` is how many
nats per token are lost when a part is left out of the prediction; if the bottleneck carries no information, the cost of
leaving out epsilon is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.evaluation.detection import macro_auc
from steerling_jax.evaluation.exact_likelihood import first_ids
from steerling_jax.evaluation.heldout_figures import (
    LEVEL,
    POSITIVES,
    Detections,
    detect,
    exact_likelihood,
    likelihood,
    probe_scores,
)
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import Tokenizer
from steerling_jax.train.evaluation.ngrams import count_ngrams
from steerling_jax.train.run.run_config import RunConfig

QUICK_TOKENS = 16_384  # of the held-out split, for the figures during training
QUICK_POSITIVES = 10  # chunks that a concept needs to be in the AUC during training


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    seq_len: tokens of a sequence.
    draws: masks drawn for each sequence.
    levels: shares of masked tokens at which concepts are detected.
    baselines: also measure n-gram models, and bag-of-words probes for the concepts.
    max_tokens: about how many tokens of the held-out split to use (None: all).
    """

    seq_len: int
    draws: int = 2
    levels: tuple[float, ...] = (LEVEL,)
    baselines: bool = True
    max_tokens: int | None = None


def evaluator(run: RunConfig, store: CorpusStore) -> Callable[[Any], Mapping[str, Any]]:
    """A function from parameters to a few figures, for the training loop. It uses the same held-out sequences and masks
    at each call, so that the figures of a run are comparable."""
    held = read_heldout(store, run.data.seq_len, most_tokens=QUICK_TOKENS)
    if isinstance(run.model, DecoderConfig):
        first_ids(run.model)  # fails before the training, not after it
        return partial(exact_likelihood, held=held, config=run.model, compute=run.compute)

    def evaluate(params: Any) -> Mapping[str, Any]:
        figures = likelihood(params, held, run.model, run.compute)
        if run.model.concept is not None:
            detections = detect(params, held, store, run.model, run.compute, LEVEL)
            auc = macro_auc(detections.evidence, detections.positive, QUICK_POSITIVES)
            figures |= {"auc": auc.macro, "auc_concepts": len(auc.concepts)}
        return figures

    return evaluate


def evaluate_full(
    params: Any,
    model: AnyConfig,
    compute: Compute,
    store: CorpusStore,
    config: EvaluationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """All figures of a model, as JSON values: likelihood, n-gram `baselines`, and `detection` at each level of noise.

    A decoder has no concepts to detect.

    tokenizer: for the bytes of the text, of a store that has none.
    """
    held = read_heldout(store, config.seq_len, most_tokens=config.max_tokens, tokenizer=tokenizer)
    size = {"bytes": held.byte_count, "seq_len": config.seq_len}
    if isinstance(model, DecoderConfig):
        figures = exact_likelihood(params, held, model, compute, progress=progress) | size
    else:
        figures = likelihood(params, held, model, compute, draws=config.draws, progress=progress)
        figures |= size | {"draws": config.draws}
    if config.baselines:
        figures["baselines"] = ngram_baselines(store, held, progress)
    if isinstance(model, DecoderConfig):
        return figures
    if model.concept is not None:
        figures["detection"] = {}
        for level in config.levels:
            detections = detect(params, held, store, model, compute, level, progress=progress)
            probes = probe_scores(detections, store, level, progress) if config.baselines else {}
            figures["detection"][f"{level:g}"] = detection_report(detections, store, probes)
    return figures


def detection_report(detections: Detections, store: CorpusStore, probes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Macro AUC over the concepts with at least `POSITIVES` positive chunks, and the AUC of each concept.

    They are given for the model, for random scores, and for each of `probes`, scores (m, C) of the same chunks.
    """
    auc = macro_auc(detections.evidence, detections.positive, POSITIVES)
    random = np.random.default_rng(0).random(detections.evidence.shape)
    report: dict[str, Any] = {
        "auc": auc.macro,
        "auc_random": macro_auc(random, detections.positive, POSITIVES).macro,
        "concepts": len(auc.concepts),
        "chunks": len(detections.chunk),
    }
    by_concept = {
        "positives": dict(zip(auc.concepts, auc.positives, strict=True)),
        "auc": dict(zip(auc.concepts, auc.each, strict=True)),
    }
    for name, scores in probes.items():
        probe_auc = macro_auc(scores, detections.positive, POSITIVES)
        report[name] = probe_auc.macro
        by_concept[name] = dict(zip(probe_auc.concepts, probe_auc.each, strict=True))
    names = {entry["id"]: entry["name"] for entry in store.concepts}
    report["by_concept"] = {
        names.get(c, f"concept {c}"): {key: values[c] for key, values in by_concept.items()} for c in auc.concepts
    }
    return report


def ngram_baselines(store: CorpusStore, held: HeldOut, progress: Progress = no_progress) -> dict[str, Any]:
    """Nats per token and bits per byte of token trigrams and 5-grams on the same tokens. Unlike the model, they see the
    end of the previous sequence."""
    held_tokens = held.tokens[held.valid]
    progress("counting n-grams", 0, 1)
    counts = count_ngrams(store.tokens(*store.split("train")), 5, store.vocab_size)
    baselines: dict[str, Any] = {}
    for order, name in ((3, "trigram"), (5, "5-gram")):
        nats = -float(np.sum(counts.model(order).log_probabilities(held_tokens)))
        baselines[name] = {"nats_per_token": nats / len(held_tokens)}
        if held.byte_count:
            baselines[name]["bits_per_byte"] = nats / math.log(2) / held.byte_count
    progress("counting n-grams", 1, 1)
    return baselines

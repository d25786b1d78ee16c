"""How well concepts detect the labels of chunks, and how many lifted tokens they promote."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import figure_entry, mean_figure
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.corpus.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.heldout_figures import POSITIVES, Detections, detect, probe_scores
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.explain.promoted_tokens import promoted_tokens
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress

PROMOTED = 50  # promoted tokens that are compared with the lifted tokens
TRAIN_CHUNKS = 20_000  # chunks of the training split that lift is counted in
_DRAWS = 50  # of the bootstrap of areas: each draw sorts all chunks for every concept
_PROBES = {"probe_whole_text": "bag-of-words probe, whole text", "probe_visible_text": "the same, visible text"}


def detection_figures(
    bundle: Bundle, held: HeldOut, store: CorpusStore, level: float, key: jax.Array, progress: Progress
) -> dict[str, Any]:
    """ "chunks": the number of held-out chunks; "figures": areas under the ROC curve of the model, probes and noise."""
    detections = detect(bundle.params, held, store, bundle.config, bundle.compute, level, progress=progress)
    return {"chunks": len(detections.chunk), "figures": _areas(detections, store, level, key, progress)}


def _areas(
    detections: Detections, store: CorpusStore, level: float, key: jax.Array, progress: Progress
) -> list[dict[str, Any]]:
    positive = detections.positive
    counts = positive.sum(axis=0)
    concepts = np.flatnonzero((counts >= POSITIVES) & (counts < len(positive)))
    if not concepts.size:
        return []
    scorers = {"the model": detections.evidence} | probe_scores(detections, store, level, progress)
    scorers["random"] = np.asarray(jax.random.uniform(key, detections.evidence.shape))
    figure = f"detection AUC, macro of {len(concepts)} concepts, level {level:g}"
    rows = []
    for name, scores in scorers.items():

        def macro(sample: np.ndarray, scores: np.ndarray = scores) -> float:
            # A bootstrap sample may have no positive, or no negative, of some concept.
            areas = [
                auc(scores[sample, c], positive[sample, c])
                for c in concepts
                if 0 < positive[sample, c].sum() < len(sample)
            ]
            return float(np.mean(areas)) if areas else math.nan

        estimate = bootstrap(macro, len(positive), key, _DRAWS)
        rows.append(figure_entry(figure, _PROBES.get(name, name), estimate, "" if name == "random" else "higher"))
        progress("concepts: detection", len(rows), len(scorers))
    return rows


def overlap_figures(bundle: Bundle, store: CorpusStore, key: jax.Array) -> list[dict[str, Any]]:
    """Share of a concept's lifted tokens that are among its promoted tokens, for known concepts with enough chunks.

    Lifted tokens are those that chunks with the concept's label contain more often than other chunks; promoted tokens
    are those whose logits the concept raises most. The control compares each concept with another concept's promotions.
    """
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + TRAIN_CHUNKS)
    positive = chunk_positives(store, first, last, bundle.concepts.known)
    concepts = np.flatnonzero(positive.sum(axis=0) >= POSITIVES)
    if len(concepts) < 2:
        return []
    lifted = lifted_tokens(
        chunk_bags(store, first, last),
        positive[:, concepts],
        store.vocab_size,
        support=5,
        least=2.0,
        most=PROMOTED,
        without=store.special.names(),
    )
    promoted, _ = promoted_tokens(
        bundle.params, concepts.tolist(), PROMOTED, head="known", config=bundle.config, compute=bundle.compute
    )
    # A cyclic shift of a random order is a permutation without fixed points: no concept is compared with itself.
    order = np.asarray(jax.random.permutation(key, len(concepts)))
    other = np.empty(len(concepts), int)
    other[order] = np.roll(order, 1)

    def share(i: int, j: int) -> float:
        tokens = lifted[i].tokens
        return float(np.isin(tokens, promoted[j]).mean()) if len(tokens) else math.nan

    figure = f"lifted tokens among the {PROMOTED} promoted ones, of {len(concepts)} concepts"
    own, shuffled = ([share(i, j) for i, j in enumerate(ids)] for ids in (range(len(concepts)), other))
    return [mean_figure(figure, "its own", own, key, "higher"), mean_figure(figure, "shuffled concepts", shuffled, key)]

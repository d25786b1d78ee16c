"""Are the concepts true? Detection against labels, what each part is worth, overlap of promoted and lifted tokens, and
effects foretold and observed (`effects`)."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.concepts.effects import BLOCKS, PROMPT_TOKENS, TOP, effects
from steerling_jax.attribution.faithfulness.figures import entry, estimate, ratio
from steerling_jax.attribution.faithfulness.kept import NOTHING_KEPT, PartialResults
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.concepts.heads import head_spec
from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.corpus.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.errors import UserError
from steerling_jax.evaluation.bound import SHARES, VARIANTS
from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.heldout_figures import POSITIVES, Detections, batch_sums, detect, probe_scores
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.explain.promoted_tokens import promoted_tokens
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress

PROMOTED = 50  # tokens compared with the lifted ones
TRAIN_CHUNKS = 20_000  # that lift is counted in
_DRAWS = 50  # of the bootstrap of areas, each of which sorts all chunks for every concept


def measure(
    bundle: Bundle,
    store: CorpusStore,
    *,
    tell: Progress = no_progress,
    kept: PartialResults = NOTHING_KEPT,
    seed: int = 0,
    prompts: int = 16,
    level: float = 0.5,
    seq_len: int = 256,
    most_tokens: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    blocks: int = BLOCKS,
) -> dict[str, Any]:
    """Figures of the concepts. level: share of tokens masked for detection. most_tokens: of the held-out split, None
    for all. prompt_tokens, blocks: of the continuations in which effects are observed. Raises `UserError` for a bare
    backbone and a corpus of another tokenizer."""
    head_spec(bundle.config, "known")
    if not 0 < level <= 1:
        raise UserError(f"level is {level:g}, but the share of masked tokens is above 0 and at most 1.")
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    key = jax.random.key(seed)
    held = read_heldout(store, min(seq_len, bundle.config.block_size), most_tokens=most_tokens)
    detection = kept.get("detection", lambda: _detection(bundle, held, store, level, key, tell))
    figures = detection["figures"]
    figures += kept.get("worth", lambda: _worth(bundle, held, seed, key, tell))
    figures += effects(bundle, store, prompts, prompt_tokens, blocks, seed, key, tell, kept)
    figures += _overlap(bundle, store, key)
    return {
        "part": "concepts",
        "settings": {
            "seed": seed, "level": level, "seq_len": seq_len, "heldout_tokens": held.token_count,
            "chunks": detection["chunks"], "least_positives": POSITIVES, "prompts": prompts,
            "prompt_tokens": prompt_tokens, "new_tokens": blocks * bundle.config.diff_block_size,
            "concepts_a_chunk": TOP,
        },
        "figures": figures,
        "notes": [
            "Detection: evidence over the masked tokens of a chunk against its labels, macro over concepts with enough "
            "positives; intervals over chunks. The probes read words only, trained on the training split's labels.",
            "Removed in the head, frozen: nothing else changes, so the logit falls by the share exactly; published: "
            "the clamp of the published package, which also drops epsilon (known) or lets epsilon refill the gap "
            "(discovered); in the pass: the direction is projected out of all positions from half the layers on.",
            "Shuffled: the shares of each token's concepts in another order.",
        ],
    }  # fmt: skip


def _detection(
    bundle: Bundle, held: HeldOut, store: CorpusStore, level: float, key: jax.Array, tell: Progress
) -> dict[str, Any]:
    """How many chunks there were, and the figures."""
    found = detect(bundle.params, held, store, bundle.config, bundle.compute, level, progress=tell)
    return {"chunks": len(found.chunk), "figures": _areas(found, store, level, key, tell)}


def _areas(found: Detections, store: CorpusStore, level: float, key: jax.Array, tell: Progress) -> list[dict[str, Any]]:
    counts = found.positive.sum(axis=0)
    chosen = np.flatnonzero((counts >= POSITIVES) & (counts < len(found.positive)))
    if not chosen.size:
        return []
    scorers = {"the model": found.evidence} | probe_scores(found, store, level, tell)
    scorers["random"] = np.asarray(jax.random.uniform(key, found.evidence.shape))
    labels = {"probe_whole_text": "bag-of-words probe, whole text", "probe_visible_text": "the same, visible text"}
    figure = f"detection AUC, macro of {len(chosen)} concepts, level {level:g}"
    rows = []
    for name, scores in scorers.items():

        def macro(at: np.ndarray, scores: np.ndarray = scores) -> float:
            areas = [
                auc(scores[at, c], found.positive[at, c]) for c in chosen if 0 < found.positive[at, c].sum() < len(at)
            ]
            return float(np.mean(areas)) if areas else math.nan

        estimated = bootstrap(macro, len(found.positive), key, _DRAWS)
        rows.append(entry(figure, labels.get(name, name), estimated, "" if name == "random" else "higher"))
        tell("concepts: detection", len(rows), len(scorers))
    return rows


def _worth(bundle: Bundle, held: HeldOut, seed: int, key: jax.Array, tell: Progress) -> list[dict[str, Any]]:
    """Loss without each part and net shares of the logits, sequence by sequence."""
    sums = list(batch_sums(bundle.params, held, bundle.config, bundle.compute, size=1, seed=seed, progress=tell))
    column = {name: np.array([s[name] for s in sums]) for name in sums[0]}
    rows = [ratio("loss, nats a token", "everything", column["full"], column["tokens"], key, "lower")]
    for name in VARIANTS[1:]:
        what = name.removeprefix("without_") + " removed"
        rows.append(ratio("loss more, nats a token", what, column[name] - column["full"], column["tokens"], key))
    for name in SHARES:
        rows.append(ratio("net share of logit mass", name, column[f"share_{name}"], column["masked"], key))
    concepts = column["share_known"] + column["share_discovered"]
    rows.append(ratio("net share of logit mass", "known and discovered", concepts, column["masked"], key, "higher"))
    return rows


def _overlap(bundle: Bundle, store: CorpusStore, key: jax.Array) -> list[dict[str, Any]]:
    """Of the tokens a known concept promotes most, the share that the labels lift, for concepts with enough chunks."""
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + TRAIN_CHUNKS)
    positive = chunk_positives(store, first, last, bundle.concepts.known)
    chosen = np.flatnonzero(positive.sum(axis=0) >= POSITIVES)
    if len(chosen) < 2:
        return []
    special = store.special.names()
    lifted = lifted_tokens(
        chunk_bags(store, first, last),
        positive[:, chosen],
        store.vocab_size,
        support=5,
        least=2.0,
        most=PROMOTED,
        without=special,
    )
    promoted, _ = promoted_tokens(
        bundle.params, chosen.tolist(), PROMOTED, head="known", config=bundle.config, compute=bundle.compute
    )
    order = np.asarray(jax.random.permutation(key, len(chosen)))
    other = np.empty(len(chosen), int)
    other[order] = np.roll(order, 1)  # no concept keeps its own

    def share(i: int, j: int) -> float:
        tokens = lifted[i].tokens
        return float(np.isin(tokens, promoted[j]).mean()) if len(tokens) else math.nan

    figure = f"lifted tokens among the {PROMOTED} promoted ones, of {len(chosen)} concepts"
    own, shuffled = ([share(i, j) for i, j in enumerate(ids)] for ids in (range(len(chosen)), other))
    return [estimate(figure, "its own", own, key, "higher"), estimate(figure, "shuffled concepts", shuffled, key)]

"""Is training-data attribution causal? Every score against retraining, a step, and where the truth was planted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import entry, estimate
from steerling_jax.attribution.faithfulness.planted.half_corpora import halves, retrain
from steerling_jax.attribution.faithfulness.planted.model import FactPrompt, answers
from steerling_jax.attribution.faithfulness.planted.run import Planted
from steerling_jax.attribution.faithfulness.planted.world import FactQuery
from steerling_jax.attribution.faithfulness.training_data.evidence_scores import (
    Texts,
    check_bm25,
    lexical_scores,
    model_scores,
)
from steerling_jax.attribution.faithfulness.training_data.metrics import (
    datamodelling_scores,
    recall_at,
    reciprocal_rank,
)
from steerling_jax.attribution.faithfulness.training_data.tail_patch import tail_patch
from steerling_jax.attribution.index.passages import Passage
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.evaluation.rank_correlation import rank_correlations
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.corpus.heldout import store_tokenizer
from steerling_jax.progress import Progress

SEEDS = (0, 1)  # of the retrainings
NEAREST = 10  # chunks of the tail patch, and of recall
_TOLD = ("paraphrase", "verbatim")  # kinds whose answer a corpus teaches


def measure(
    planted: Planted, *, tell: Progress, seed: int = 0, subsets: int = 48, twice: int | None = None
) -> dict[str, Any]:
    """Figures of every score on the planted world; intervals are over queries. Retrainings and scores are kept in
    `planted.folder` and not made twice. twice: halves that are trained with a second seed, None for all."""
    check_bm25()
    planted = planted.with_models(tell)
    world, asked, documents = planted.world, planted.asked, planted.documents
    kinds = np.array([query.kind for query in world.queries])
    kept = halves(int(documents.source.max()) + 1, subsets, seed)
    place = planted.folder / "halves"
    observed = [
        retrain(planted.recipe, documents, asked, some, place, seed=one, tell=tell)[:, 0]
        for one, some in zip(SEEDS, (kept, kept[:twice]))
    ]
    texts = texts_of(planted)
    scores = lexical_scores(texts, seed) | _model_scores(planted, texts, tell)
    key = jax.random.key(seed)
    figures = known_facts(planted, asked, kinds, key)
    figures += datamodelling(scores, kept[:, documents.source], observed, kinds, key)
    figures += patched(planted, scores, asked, kinds, key, tell)
    figures += retrieved(scores, world.queries, key)
    return {
        "part": "data",
        "settings": {
            "seed": seed, "subsets": subsets, "twice": len(observed[1]), "retraining_seeds": list(SEEDS),
            "steps": planted.recipe.steps,
            "attribution_seeds": [model.seed for model in planted.models], "chunks": len(world.chunks),
            "queries": {str(kind): int(np.sum(kinds == kind)) for kind in dict.fromkeys(kinds)},
        },
        "figures": figures,
        "notes": [
            "Answer: log-probability of a fact's object, masked, after the words before it. Half-corpora are drawn by "
            "books of eight chunks; a score's datamodelling figure is the mean of its correlations with each seed's "
            "answers, as noisy as the ceiling, which is the correlation of the two seeds.",
            "Tail patch: change of the answer by one step of fixed length on the ten best chunks.",
            "Edited: passages of which the corpus has copies with one word in thirteen replaced.",
        ],
    }  # fmt: skip


def _model_scores(planted: Planted, texts: Texts, tell: Progress) -> dict[str, np.ndarray]:
    """`model_scores`, kept in a file."""
    path = planted.folder / "scores.npz"
    if not path.exists():
        scores = model_scores(planted.models, texts, planted.recipe, tell)
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **scores)  # type: ignore[arg-type]
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}


def texts_of(planted: Planted) -> Texts:
    """Queries up to what is asked for, and all chunks, as words and as the model reads them."""
    tokenizer, bos = store_tokenizer(planted.store), planted.store.special.bos_id
    queries = [np.array(tokenizer.encode(" ".join(query.words[: query.end]))) for query in planted.world.queries]
    chunks = [np.array(tokenizer.encode(" ".join(chunk.words))) for chunk in planted.world.chunks]
    asked = [
        Passage(np.array([bos, *tokens]), query.start + 1, query.end + 1)
        for tokens, query in zip(queries, planted.world.queries)
    ]
    return Texts(queries, chunks, asked, [Passage(np.array([bos, *tokens]), 1, len(tokens) + 1) for tokens in chunks])


def known_facts(planted: Planted, asked: FactPrompt, kinds: np.ndarray, key: jax.Array) -> list[dict[str, Any]]:
    """Does the model know what it was told, and only that?"""
    config, compute = planted.recipe.model, planted.recipe.compute
    found = np.mean([answers(m.params, asked, config=config, compute=compute)[0] for m in planted.models], axis=0)
    figures = []
    for kind in (*_TOLD, "untold"):
        if np.any(kinds == kind):
            figures.append(
                estimate("log p(object)", kind, found[kinds == kind], key, "" if kind == "untold" else "higher")
            )
            figures.append(estimate("p(object)", kind, np.exp(found[kinds == kind]), key))
    return figures


def datamodelling(
    scores: dict[str, np.ndarray], kept: np.ndarray, observed: Sequence[np.ndarray], kinds: np.ndarray, key: jax.Array
) -> list[dict[str, Any]]:
    """Linear datamodelling scores, the ceiling, and each score's share of it. observed: of each seed, (m, Q) for the
    first m corpora of kept."""
    figures = []
    for kind in _TOLD:
        asked = np.flatnonzero(kinds == kind)
        if not len(asked):
            continue
        both = min(map(len, observed))
        ceiling = rank_correlations(*(one[:both, asked].T for one in observed))
        figures.append(estimate("seed-to-seed ceiling", kind, ceiling, key))
        for name, values in scores.items():
            each = [datamodelling_scores(values[asked], kept[: len(one)], one[:, asked]) for one in observed]
            weight = np.array([len(one) for one in observed], float)
            found = np.nan_to_num(
                np.average(each, axis=0, weights=weight)
            )  # a score that is 0 for all chunks says nothing
            figures.append(estimate("datamodelling score", f"{kind}: {name}", found, key, "higher"))

            def share(rows: np.ndarray, found: np.ndarray = found, ceiling: np.ndarray = ceiling) -> float:
                known = ceiling[rows][~np.isnan(ceiling[rows])]
                return float(found[rows].mean() / known.mean()) if known.sum() > 0 else math.nan

            figures.append(
                entry("share of the ceiling", f"{kind}: {name}", bootstrap(share, len(asked), key), "higher")
            )
    return figures


def patched(
    planted: Planted,
    scores: dict[str, np.ndarray],
    asked: FactPrompt,
    kinds: np.ndarray,
    key: jax.Array,
    tell: Progress,
) -> list[dict[str, Any]]:
    """Tail patches of the first model by each score's best chunks."""
    tokens, figures = planted.documents.examples["tokens"], []
    rows = np.flatnonzero(np.isin(kinds, _TOLD))
    some = FactPrompt(*(values[rows] for values in asked))
    for number, (name, values) in enumerate(scores.items()):
        tell("tail patch", number, len(scores))
        best = np.argsort(-values[rows], axis=1, kind="stable")[:, :NEAREST]
        change = tail_patch(planted.models[0].params, tokens, some, best, planted.recipe)
        for kind in _TOLD:
            figures.append(estimate("tail patch", f"{kind}: {name}", change[kinds[rows] == kind], key, "higher"))
    tell("tail patch", len(scores), len(scores))
    return figures


def retrieved(scores: dict[str, np.ndarray], queries: Sequence[FactQuery], key: jax.Array) -> list[dict[str, Any]]:
    """Reciprocal rank and recall@10 of the planted evidence."""
    figures = []
    for kind in ("paraphrase", "verbatim", "duplicated", "edited"):
        rows = [row for row, query in enumerate(queries) if query.kind == kind]
        for name, values in scores.items():
            ranks = [reciprocal_rank(values[row], queries[row].evidence) for row in rows]
            recall = [recall_at(values[row], queries[row].evidence, NEAREST) for row in rows]
            figures.append(estimate("reciprocal rank", f"{kind}: {name}", ranks, key, "higher"))
            figures.append(estimate("recall@10", f"{kind}: {name}", recall, key, "higher"))
    return figures

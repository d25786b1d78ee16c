"""Faithfulness of training-data attribution: every score against retraining, a training step, and planted evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import figure_entry, mean_figure
from steerling_jax.attribution.faithfulness.planted.defaults import SUBSETS
from steerling_jax.attribution.faithfulness.planted.fact_prompts import FactPrompts, answer_log_probabilities
from steerling_jax.attribution.faithfulness.planted.retraining import draw_halves, retrain
from steerling_jax.attribution.faithfulness.planted.workspace import PlantedWorkspace
from steerling_jax.attribution.faithfulness.training_data.evidence_scores import (
    ScoredTexts,
    check_bm25,
    lexical_scores,
    model_scores,
)
from steerling_jax.attribution.faithfulness.training_data.metrics import (
    datamodelling_scores,
    perfect_score,
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

SEEDS = (0, 1)  # of the retrained models
NEAREST = 10  # chunks of a tail patch, and of recall
_STATED = ("paraphrase", "verbatim")  # kinds of queries whose answer the corpus states
_NOTES = [
    "Answer: log-probability of a fact's object, masked, after the words before it. Half-corpora are drawn by books of "
    "eight chunks; a score's datamodelling figure is the mean of its correlations with the answers of each seed. The "
    "ceiling is what the expected answers themselves would reach: the square root of the correlation of two seeds.",
    "Tail patch: change of the answer by one step of fixed length on the ten best chunks.",
    "Edited: passages of which the corpus has copies with one word in thirteen replaced.",
]


def measure(
    workspace: PlantedWorkspace, *, progress: Progress, seed: int = 0, subsets: int = SUBSETS, twice: int | None = None
) -> dict[str, Any]:
    """Figures of every score in the planted world; intervals are over queries.

    subsets: number of half-corpora. twice: half-corpora that are trained with a second seed too, None for all.
    Retrained models' answers and scores are stored in the workspace and not computed again.
    """
    check_bm25()
    workspace = workspace.with_models(progress)
    prompts, documents = workspace.prompts, workspace.documents
    halves = draw_halves(int(documents.source.max()) + 1, subsets, seed)
    answers = [
        retrain(workspace.recipe, documents, prompts, some, workspace.folder / "halves", seed=one, progress=progress)[
            :, 0
        ]
        for one, some in zip(SEEDS, (halves, halves[:twice]))
    ]
    texts = scored_texts(workspace)
    scores = lexical_scores(texts, seed) | _model_scores(workspace, texts, progress)
    part = _Part(workspace, prompts, scores, jax.random.key(seed))
    figures = part.answer_figures()
    figures += part.datamodelling_figures(halves[:, documents.source], answers)
    figures += part.tail_patch_figures(progress)
    figures += part.retrieval_figures()
    return {
        "part": "data",
        "settings": {
            "seed": seed,
            "subsets": subsets,
            "twice": len(answers[1]),
            "retraining_seeds": list(SEEDS),
            "steps": workspace.recipe.steps,
            "attribution_seeds": [model.seed for model in workspace.models],
            "chunks": len(workspace.world.chunks),
            "queries": {str(kind): int(np.sum(part.kinds == kind)) for kind in dict.fromkeys(part.kinds)},
        },
        "figures": figures,
        "notes": _NOTES,
    }


def scored_texts(workspace: PlantedWorkspace) -> ScoredTexts:
    """Queries up to their queried words, and all chunks."""
    tokenizer, bos = store_tokenizer(workspace.store), workspace.store.special.bos_id
    world = workspace.world
    queries = [np.array(tokenizer.encode(" ".join(query.words[: query.end]))) for query in world.queries]
    chunks = [np.array(tokenizer.encode(" ".join(chunk.words))) for chunk in world.chunks]
    query_passages = [
        Passage(np.array([bos, *tokens]), query.start + 1, query.end + 1)
        for tokens, query in zip(queries, world.queries)
    ]
    chunk_passages = [Passage(np.array([bos, *tokens]), 1, len(tokens) + 1) for tokens in chunks]
    return ScoredTexts(queries, chunks, query_passages, chunk_passages)


def _model_scores(workspace: PlantedWorkspace, texts: ScoredTexts, progress: Progress) -> dict[str, np.ndarray]:
    """`model_scores`, stored in a file of the workspace."""
    path = workspace.folder / "scores.npz"
    if not path.exists():
        scores = model_scores(workspace.models, texts, workspace.recipe, progress)
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **scores)  # type: ignore[arg-type]
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@dataclass
class _Part:
    """What the figures are computed from: scores (Q, N) by name, for the queries of the workspace."""

    workspace: PlantedWorkspace
    prompts: FactPrompts
    scores: dict[str, np.ndarray]
    key: jax.Array

    def __post_init__(self) -> None:
        self.queries = self.workspace.world.queries
        self.kinds = np.array([query.kind for query in self.queries])

    def answer_figures(self) -> list[dict[str, Any]]:
        """How well the models know the facts that the corpus states, and the ones that it does not state."""
        recipe = self.workspace.recipe
        answers = [
            answer_log_probabilities(model.params, self.prompts, config=recipe.model, compute=recipe.compute)[0]
            for model in self.workspace.models
        ]
        log_p = np.mean(answers, axis=0)
        figures = []
        for kind in (*_STATED, "untold"):
            rows = self.kinds == kind
            if rows.any():
                better = "" if kind == "untold" else "higher"
                figures.append(mean_figure("log p(object)", kind, log_p[rows], self.key, better))
                figures.append(mean_figure("p(object)", kind, np.exp(log_p[rows]), self.key))
        return figures

    def datamodelling_figures(self, members: np.ndarray, answers: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Linear datamodelling scores, what a perfect score would reach, and each score's share of that.

        members: (m, N) bool, the chunks of each half-corpus; answers: for each seed (m', Q), of the first m' of them.
        """
        figures = []
        for kind in _STATED:
            rows = np.flatnonzero(self.kinds == kind)
            if not len(rows):
                continue
            both = min(map(len, answers))
            agreement = rank_correlations(*(one[:both, rows].T for one in answers))
            figures.append(mean_figure("seed-to-seed correlation", kind, agreement, self.key))
            perfect = bootstrap(lambda some, of=agreement: perfect_score(of[some]), len(agreement), self.key)
            figures.append(figure_entry("ceiling", kind, perfect, ""))
            for name, values in self.scores.items():
                each = [datamodelling_scores(values[rows], members[: len(one)], one[:, rows]) for one in answers]
                weight = np.array([len(one) for one in answers], float)
                # A score that is equal for all corpora has no rank correlation; it explains nothing, so it counts as 0.
                score = np.nan_to_num(np.average(each, axis=0, weights=weight))
                of = f"{kind}: {name}"
                figures.append(mean_figure("datamodelling score", of, score, self.key, "higher"))
                figures.append(_share_of_ceiling(of, score, agreement, self.key))
        return figures

    def tail_patch_figures(self, progress: Progress) -> list[dict[str, Any]]:
        """Tail patches of the first model by each score's best chunks."""
        workspace, figures = self.workspace, []
        tokens = workspace.documents.examples["tokens"]
        rows = np.flatnonzero(np.isin(self.kinds, _STATED))
        prompts = FactPrompts(*(values[rows] for values in self.prompts))
        for number, (name, values) in enumerate(self.scores.items()):
            progress("tail patch", number, len(self.scores))
            best = np.argsort(-values[rows], axis=1, kind="stable")[:, :NEAREST]
            change = tail_patch(workspace.models[0].params, tokens, prompts, best, workspace.recipe)
            for kind in _STATED:
                selected = change[self.kinds[rows] == kind]
                figures.append(mean_figure("tail patch", f"{kind}: {name}", selected, self.key, "higher"))
        progress("tail patch", len(self.scores), len(self.scores))
        return figures

    def retrieval_figures(self) -> list[dict[str, Any]]:
        """Reciprocal rank and recall@10 of the planted evidence."""
        figures = []
        for kind in ("paraphrase", "verbatim", "duplicated", "edited"):
            rows = np.flatnonzero(self.kinds == kind)
            for name, values in self.scores.items():
                ranks = [reciprocal_rank(values[row], self.queries[row].evidence) for row in rows]
                recall = [recall_at(values[row], self.queries[row].evidence, NEAREST) for row in rows]
                figures.append(mean_figure("reciprocal rank", f"{kind}: {name}", ranks, self.key, "higher"))
                figures.append(mean_figure("recall@10", f"{kind}: {name}", recall, self.key, "higher"))
        return figures


def _share_of_ceiling(of: str, score: np.ndarray, agreement: np.ndarray, key: jax.Array) -> dict[str, Any]:
    """Mean datamodelling score over the score of perfect knowledge, for the same queries in each bootstrap sample."""

    def share(rows: np.ndarray) -> float:
        perfect = perfect_score(agreement[rows])
        return float(score[rows].mean() / perfect) if perfect > 0 else math.nan

    return figure_entry("share of the ceiling", of, bootstrap(share, len(score), key), "higher")

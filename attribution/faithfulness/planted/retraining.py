"""Retraining on random halves of the corpus: how the model's answers change when chunks are left out.

Each half and seed has its own small file, so that an interrupted run continues with the missing ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steerling_jax.attribution.faithfulness.planted.fact_prompts import FactPrompts, answer_log_probabilities
from steerling_jax.attribution.faithfulness.planted.recipe import BATCH
from steerling_jax.attribution.faithfulness.planted.training import Documents, draw_batches, fit
from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json
from steerling_jax.io.text_files import load_json
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress


def draw_halves(sources: int, count: int, seed: int) -> np.ndarray:
    """Which sources each of `count` half-corpora contains, (count, sources) bool, drawn by `seed`.

    A half depends on the seed and its number only, so that a run with a larger count reuses all trained halves.
    """
    halves = np.zeros((count, sources), bool)
    for number in range(count):
        halves[number, np.random.default_rng((seed, number)).permutation(sources)[: sources // 2]] = True
    return halves


def retrain(
    recipe: Recipe,
    documents: Documents,
    prompts: FactPrompts,
    halves: np.ndarray,
    folder: Path,
    *,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Answers (halves, 2, Q) of models trained with one seed on each half (`fact_prompts.answer_log_probabilities`).

    Reads the files of `folder`, and trains the missing models. Raises `UserError` for a file of another run.
    """
    answers, stage = [], f"retraining, seed {seed}"
    for number, half in enumerate(halves):
        progress(stage, number, len(halves))
        path = folder / f"half-{number:03d}-seed-{seed}.json"
        if not path.exists():
            members = np.flatnonzero(half[documents.source])
            values = _train_and_answer(recipe, documents, members, prompts, seed)
            write_json(path, {"kept": np.flatnonzero(half).tolist(), "answers": values.tolist()})
        answers.append(_read(path, half, len(prompts.place)))
    progress(stage, len(halves), len(halves))
    return np.array(answers)


def _train_and_answer(
    recipe: Recipe, documents: Documents, members: np.ndarray, prompts: FactPrompts, seed: int
) -> np.ndarray:
    """Answers (2, Q) of a model trained on the documents numbered in `members`."""
    batches = draw_batches(documents, members, batch=BATCH, steps=recipe.steps, seed=seed)
    *_, (_, params, _) = fit(recipe, batches, seed)
    return answer_log_probabilities(params, prompts, config=recipe.model, compute=recipe.compute)


def _read(path: Path, half: np.ndarray, queries: int) -> np.ndarray:
    try:
        raw = load_json(path.read_bytes())
        values = np.array(raw["answers"], np.float64)
        same = raw["kept"] == np.flatnonzero(half).tolist() and values.shape == (2, queries)
    except (OSError, ValueError, KeyError, TypeError):
        same, values = False, np.zeros(0)
    if not same:
        raise UserError(
            f"{path} is damaged or belongs to a run with other settings: remove it, or choose another --out."
        )
    return values

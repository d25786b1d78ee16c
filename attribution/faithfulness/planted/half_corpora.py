"""The model trained again on halves of the corpus: what really happens to its answers when chunks are left out.

One small file for each half and seed, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from steerling_jax.attribution.faithfulness.planted.fit import Documents, draw_batches, fit
from steerling_jax.attribution.faithfulness.planted.model import BATCH, FactPrompt, answers
from steerling_jax.errors import UserError
from steerling_jax.io.json_files import write_json
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress


def halves(sources: int, count: int, seed: int) -> np.ndarray:
    """Which sources are kept, (count, sources) bool: half of them each time, drawn by `seed`. A longer list of the same
    seed begins with the shorter one."""
    kept = np.zeros((count, sources), bool)
    for number in range(count):
        kept[number, np.random.default_rng((seed, number)).permutation(sources)[: sources // 2]] = True
    return kept


def retrain(
    recipe: Recipe,
    documents: Documents,
    asked: FactPrompt,
    kept: np.ndarray,
    folder: Path,
    *,
    seed: int,
    tell: Progress,
) -> np.ndarray:
    """The answers of models trained on each half with one seed, (halves, 2, Q); see `planted_model.answers`.

    Reads what `folder` has, and trains the rest. Raises `UserError` for a file that is of another run.
    """
    found, stage = [], f"retraining, seed {seed}"
    for number, half in enumerate(kept):
        tell(stage, number, len(kept))
        path = folder / f"half-{number:03d}-seed-{seed}.json"
        if not path.exists():
            values = train_and_ask(recipe, documents, np.flatnonzero(half[documents.source]), asked, seed)
            write_json(path, {"kept": np.flatnonzero(half).tolist(), "answers": values.tolist()})
        found.append(_read(path, half, len(asked.place)))
    tell(stage, len(kept), len(kept))
    return np.array(found)


def train_and_ask(
    recipe: Recipe, documents: Documents, members: np.ndarray, asked: FactPrompt, seed: int
) -> np.ndarray:
    """The answers (2, Q) of a model trained on the documents numbered in `members`."""
    batches = draw_batches(documents, members, batch=BATCH, steps=recipe.steps, seed=seed)
    *_, (_, params, _) = fit(recipe, batches, seed)
    return answers(params, asked, config=recipe.model, compute=recipe.compute)


def _read(path: Path, kept: np.ndarray, queries: int) -> np.ndarray:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        values = np.array(raw["answers"], np.float64)
        same = raw["kept"] == np.flatnonzero(kept).tolist() and values.shape == (2, queries)
    except (OSError, ValueError, KeyError, TypeError):
        same, values = False, np.zeros(0)
    if not same:
        raise UserError(f"{path} is damaged, or of a run with other settings: remove it, or choose another --out.")
    return values

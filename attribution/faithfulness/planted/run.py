"""A folder with the planted world: its corpus, its models, what was retrained. Made once, then read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steerling_jax.attribution.faithfulness.planted.corpus import write_world
from steerling_jax.attribution.faithfulness.planted.fit import STRETCHES, Documents
from steerling_jax.attribution.faithfulness.planted.model import KEPT, FactPrompt, TrainedModel, ask, recipe, train
from steerling_jax.attribution.faithfulness.planted.world import World, WorldSize, make_world
from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.parameters import load_checkpoint_params, save_params_checkpoint
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import write_json
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress

MODEL_SEEDS = (100, 101)  # of the models of the whole corpus: none is a retrained one


@dataclass(frozen=True)
class Planted:
    """models: trained on the whole corpus, each with a seed of its own; none before `with_models`."""

    folder: Path
    world: World
    store: CorpusStore
    documents: Documents
    recipe: Recipe
    models: Sequence[TrainedModel] = ()

    @property
    def asked(self) -> FactPrompt:
        from steerling_jax.io.corpus.heldout import store_tokenizer

        return ask(self.world.queries, store_tokenizer(self.store), self.documents.examples["tokens"].shape[1])

    def model_folder(self, seed: int, stretch: int = STRETCHES - 1) -> Path:
        """Where the parameters of a model after a stretch of its training are."""
        return self.folder / f"model-{seed}-step-{self.recipe.steps // STRETCHES * (stretch + 1)}"

    def with_models(self, tell: Progress) -> Planted:
        """The same with its models, read where they are there, else trained and written."""
        models = []
        for number, seed in enumerate(MODEL_SEEDS):
            tell("training", number, len(MODEL_SEEDS))
            models.append(self._read(seed) or self._train(seed))
        tell("training", len(MODEL_SEEDS), len(MODEL_SEEDS))
        return replace(self, models=tuple(models))

    def _read(self, seed: int) -> TrainedModel | None:
        folders = [self.model_folder(seed, stretch) for stretch in KEPT]
        if not all(folder.is_dir() for folder in folders):
            return None
        params = [load_checkpoint_params(folder)[1] for folder in folders]
        return TrainedModel(seed, params[-1], tuple(params))

    def _train(self, seed: int) -> TrainedModel:
        trained = train(self.recipe, self.documents, seed)
        for stretch, params in zip(KEPT, trained.checkpoints):
            files = [self.store.folder / "tokenizer.model", self.folder / "concepts.json"]
            save_params_checkpoint(self.model_folder(seed, stretch), self.recipe.model, params, files=files)
        return trained


def open_planted(folder: Path, seed: int, steps: int, size: WorldSize) -> Planted:
    """The world of a seed in `folder`, written there if it is new. Raises `UserError` for a folder with another."""
    world = make_world(seed, size)
    about = {"seed": seed, "steps": steps, "size": asdict(world.size)}
    path = folder / "planted.json"
    if not path.exists():
        store = write_world(world, folder / "corpus")
        write_json(folder / "concepts.json", store.concepts)
        write_json(path, about)
    if _read_json(path) != about:
        raise UserError(
            f"{folder} holds a planted world with another seed, size or number of steps: choose another --out."
        )
    store = CorpusStore(folder / "corpus")
    return Planted(folder, world, store, Documents.read(store), recipe(store, steps))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: remove the folder, or choose another --out.") from error

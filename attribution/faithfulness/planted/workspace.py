"""The folder of a planted world: its corpus, its trained models and the retrained halves. Made once, then read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steerling_jax.attribution.faithfulness.planted.fact_prompts import FactPrompts, make_fact_prompts
from steerling_jax.attribution.faithfulness.planted.recipe import planted_recipe
from steerling_jax.attribution.faithfulness.planted.training import PARTS, SAVED_PARTS, Documents, TrainedModel, train
from steerling_jax.attribution.faithfulness.planted.world import World, WorldSize
from steerling_jax.attribution.faithfulness.planted.world_generator import generate_world
from steerling_jax.attribution.faithfulness.planted.write_corpus import write_world
from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.parameters import load_checkpoint_params, save_params_checkpoint
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import write_json
from steerling_jax.io.text_files import load_json
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress

MODEL_SEEDS = (100, 101)  # of the models of the whole corpus; retrained models have other seeds


@dataclass(frozen=True)
class PlantedWorkspace:
    """A planted world with its corpus and models.

    `models` are trained on the whole corpus, one per seed of `MODEL_SEEDS`; empty before `with_models`.
    """

    folder: Path
    world: World
    store: CorpusStore
    documents: Documents
    recipe: Recipe
    models: Sequence[TrainedModel] = ()

    @property
    def prompts(self) -> FactPrompts:
        """The prompts of the world's queries."""
        from steerling_jax.io.corpus.heldout import store_tokenizer

        length = self.documents.examples["tokens"].shape[1]
        return make_fact_prompts(self.world.queries, store_tokenizer(self.store), length)

    def model_folder(self, seed: int, part: int = PARTS - 1) -> Path:
        """The folder of a model's parameters after a part of its training."""
        return self.folder / f"model-{seed}-step-{self.recipe.steps // PARTS * (part + 1)}"

    def with_models(self, progress: Progress) -> PlantedWorkspace:
        """The workspace with its models, which are trained and written if their folders do not exist."""
        models = []
        for number, seed in enumerate(MODEL_SEEDS):
            progress("training", number, len(MODEL_SEEDS))
            models.append(self._read(seed) or self._train(seed))
        progress("training", len(MODEL_SEEDS), len(MODEL_SEEDS))
        return replace(self, models=tuple(models))

    def _read(self, seed: int) -> TrainedModel | None:
        folders = [self.model_folder(seed, part) for part in SAVED_PARTS]
        if not all(folder.is_dir() for folder in folders):
            return None
        params = [load_checkpoint_params(folder)[1] for folder in folders]
        return TrainedModel(seed, params[-1], tuple(params))

    def _train(self, seed: int) -> TrainedModel:
        trained = train(self.recipe, self.documents, seed)
        for part, params in zip(SAVED_PARTS, trained.checkpoints):
            files = [self.store.folder / "tokenizer.model", self.folder / "concepts.json"]
            save_params_checkpoint(self.model_folder(seed, part), self.recipe.model, params, files=files)
        return trained


def open_workspace(folder: Path, seed: int, steps: int, size: WorldSize) -> PlantedWorkspace:
    """Opens the world of a seed in `folder`, and writes it if the folder is new.

    Raises `UserError` for a folder with another world, and for one that cannot be read.
    """
    world = generate_world(seed, size)
    about = {"seed": seed, "steps": steps, "size": asdict(world.size)}
    path = folder / "planted.json"
    if not path.exists():
        store = write_world(world, folder / "corpus")
        write_json(folder / "concepts.json", store.concepts)
        write_json(path, about)
    if _read_json(path) != about:
        raise UserError(
            f"{folder} has a planted world with another seed, size or number of steps: choose another --out."
        )
    store = CorpusStore(folder / "corpus")
    return PlantedWorkspace(folder, world, store, Documents.read(store), planted_recipe(store, steps))


def _read_json(path: Path) -> Any:
    try:
        return load_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: remove the folder, or choose another --out.") from error

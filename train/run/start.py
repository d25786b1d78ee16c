"""What a run begins with: its own newest checkpoint, else other weights (`RunConfig.start_from`), else a fresh draw."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.catalogue import read_concept_names
from steerling_jax.io.checkpoints.parameters import RUN_FILE, load_checkpoint_params, read_model_config
from steerling_jax.io.checkpoints.training import TrainingCheckpoints
from steerling_jax.io.checkpoints.training_folder import check_start, record_start
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.load import vocabulary_file
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.objectives.training_step import TrainState, state_shardings
from steerling_jax.tokenizer import TURN_TOKENS
from steerling_jax.train.run.config_difference import flatten
from steerling_jax.train.run.metrics import METRICS_FILE
from steerling_jax.train.run.processes import is_first
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import abstract_state, init_state
from steerling_jax.train.run.turn_tokens import add_turn_tokens


@dataclass(frozen=True)
class InitialWeights:
    """Parameters for step 0: of the model or training run in `folder`, whose own config is `config`."""

    folder: Path
    config: ModelConfig

    def check_corpus(self, store: CorpusStore) -> None:
        """Raises `UserError` where the weights know other tokens or other concepts by the same numbers."""
        tokenizer = vocabulary_file(self.folder)
        if tokenizer is not None:
            ours = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
            if ours != store.manifest["tokenizer_sha256"]:
                raise UserError(
                    f"start_from {self.folder} has another tokenizer than the corpus {store.folder}; prepare the "
                    f"corpus with --tokenizer {self.folder}."
                )
        names = read_concept_names(self.folder, self.config)
        for concept, name in zip(store.concepts, names or ()):
            if concept["name"] != name:
                raise UserError(
                    f"start_from {self.folder} calls concept {concept['id']} {name!r}, the corpus {store.folder} "
                    f"{concept['name']!r}; label the corpus with the model's own concepts."
                )

    def read(self, model: ModelConfig, mesh: jax.sharding.Mesh) -> Params:
        """The parameters, float32, each straight to its place on the mesh; with rows for the ids of turns where `model`
        has these and the weights do not."""
        load = load_checkpoint_params if (self.folder / RUN_FILE).is_file() else read_published
        params = load(self.folder, dtype="float32", sharding=param_shardings(self.config, mesh))[1]
        if model.vocab_size == self.config.vocab_size:
            return params
        grow = partial(add_turn_tokens, config=self.config)
        return jax.jit(grow, out_shardings=param_shardings(model, mesh))(params)


def find_weights(run: RunConfig) -> InitialWeights | None:
    """What `run.start_from` names, its parameters checked against the run's model; None where it names nothing.

    Raises `UserError` where nothing is there, or the first parameter that is missing or of another shape is named.
    """
    if run.start_from is None:
        return None
    folder = hub.resolve(run.start_from).absolute()
    config = read_model_config(folder)
    late = run.model.eot_id is not None and config.eot_id is None  # conversations, from a model of texts
    vocabulary = config.vocab_size + (TURN_TOKENS if late else 0)
    theirs, ours = _shapes(dataclasses.replace(config, vocab_size=vocabulary)), _shapes(run.model)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"start_from {folder} {_has(name, theirs)}, but the model of config {run.name!r} {_has(name, ours)}; "
                "make the config's model the same size."
            )
    return InitialWeights(folder, config)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in shapes}


def _has(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"has {name} of shape {shapes[name]}" if name in shapes else f"has no {name}"


@dataclass(frozen=True)
class StartingPoint:
    """The state to go on from, after `step`; `base` are the weights under adapters (`RunConfig.lora`), None without.

    order says in sentences what came from where, the first thing first; unreadable are newer checkpoints that were
    passed over, with the reasons; clock is the saved one, if any.
    """

    state: TrainState
    base: Params | None
    step: int
    order: tuple[str, ...]
    unreadable: tuple[tuple[int, str], ...] = ()
    clock: Mapping[str, Any] | None = None


def begin(
    run: RunConfig,
    mesh: jax.sharding.Mesh,
    checkpoints: TrainingCheckpoints,
    folder: Path,
    other: InitialWeights | None,
) -> StartingPoint:
    """Restores what there is. Raises `UserError` when there are checkpoints but none can be read, or when the other
    weights are not those with which the run in `folder` began."""
    places = state_shardings(run, mesh)
    found = checkpoints.restore(abstract_state(run, mesh))
    order, given = [], None
    if other is not None and (found is None or run.lora is not None):
        given = other.read(run.model, mesh)
        name = fingerprint(given, other.config)
        _remember(folder, other, name)
        what = "parameters" if run.lora is None else "parameters under the adapters"
        order.append(f"{what}: {other.folder}, fingerprint {name}{_changed(other.config, run.model)}")
    base = None if run.lora is None else given
    if found is not None:
        told = "" if found.verified else " (cut off before its digests were written: taken as it is)"
        order.append(f"state and clock, step {found.step}: {checkpoints.folder / str(found.step)}{told}")
        order += _rest(run, found.step)
        return StartingPoint(found.state, base, found.step, tuple(order), found.unreadable, found.clock)
    if given is None or base is not None:
        state = jax.jit(partial(init_state, run), out_shardings=places)()
        order.append(f"{'parameters' if base is None else 'adapters'}: drawn, seed {run.seed}")
    else:
        state = jax.jit(partial(_init_with, run), donate_argnums=0, out_shardings=places)(given)
    return StartingPoint(state, base, 0, (*order, "optimizer: fresh", *_rest(run, 0)))


def _remember(folder: Path, other: InitialWeights, name: str) -> None:
    identity = {"folder": str(other.folder), "fingerprint": name}
    check_start(folder, identity)
    if is_first():
        record_start(folder, identity)


def _init_with(run: RunConfig, params: Params) -> TrainState:
    """The compiler leaves out the draw that is replaced."""
    fresh = init_state(run)
    return fresh.replace(params=params)  # type: ignore[attr-defined]


def _rest(run: RunConfig, step: int) -> list[str]:
    data = f"data: batch {step} on, of the order drawn with seed {run.seed}"
    return [data, f"{METRICS_FILE}: its lines up to step {step}"] if step else [data]


def _changed(theirs: ModelConfig, ours: ModelConfig) -> str:
    """Fields that leave the shapes alone but not the computation."""
    old, new = (dict(flatten(dataclasses.asdict(config))) for config in (theirs, ours))
    names = [name for name in new if old.get(name) != new[name]]
    return f" (changed here: {', '.join(names)})" if names else ""

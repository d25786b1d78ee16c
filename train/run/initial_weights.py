"""Parameters that a run starts from in place of a random initialisation (`RunConfig.start_from`)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from steerling_jax.errors import UserError
from steerling_jax.io import hub
from steerling_jax.io.catalogue import read_concept_names
from steerling_jax.io.checkpoints.parameters import RUN_FILE, load_checkpoint_params, read_model_config
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.load import vocabulary_file
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.tokenizer import TURN_TOKENS
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.turn_tokens import add_turn_tokens


@dataclass(frozen=True)
class InitialWeights:
    """The parameters of the model or training run in `folder`; `config` is its model's.

    without: top-level parameters that are not read into the run's model, because it makes new ones.
    """

    folder: Path
    config: ModelConfig
    without: frozenset[str] = frozenset()

    def check_corpus(self, store: CorpusStore) -> None:
        """Raises `UserError` unless token ids and concept numbers mean the same in the corpus as in the model."""
        tokenizer = vocabulary_file(self.folder)
        if tokenizer is not None:
            sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
            if sha256 != store.manifest["tokenizer_sha256"]:
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
        """The parameters in float32, each read directly into its shards on the mesh. Where `model` has turn tokens and
        the weights do not, their embeddings are added. Parameters in `without` are left out."""
        load = load_checkpoint_params if (self.folder / RUN_FILE).is_file() else read_published
        params = load(self.folder, dtype="float32", sharding=param_shardings(self.config, mesh))[1]
        params = {name: value for name, value in params.items() if name not in self.without}
        if model.vocab_size == self.config.vocab_size:
            return params
        grow = partial(add_turn_tokens, config=self.config)
        return jax.jit(grow, out_shardings=param_shardings(model, mesh))(params)


def find_initial_weights(run: RunConfig) -> InitialWeights | None:
    """The weights that `run.start_from` names, not yet read; None where it is None.

    Raises `UserError` where there is no such model, and for the first parameter that is missing in it or in the run's
    model, or has another shape.
    """
    if run.start_from is None:
        return None
    folder = hub.resolve(run.start_from).absolute()
    config = read_model_config(folder)
    adds_turn_tokens = run.model.eot_id is not None and config.eot_id is None
    vocab_size = config.vocab_size + (TURN_TOKENS if adds_turn_tokens else 0)
    theirs, ours = _shapes(dataclasses.replace(config, vocab_size=vocab_size)), _shapes(run.model)
    new = _new_heads(run, config)
    for name in [*ours, *theirs]:
        if name.partition(".")[0] in new:
            continue
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"start_from {folder} {_describe(name, theirs)}, but the model of config {run.name!r} "
                f"{_describe(name, ours)}; make the config's model the same size."
            )
    return InitialWeights(folder, config, new)


def _new_heads(run: RunConfig, config: ModelConfig) -> frozenset[str]:
    """The concept heads that the run makes anew: a dictionary from data, and both heads where the weights have none."""
    if not isinstance(run.objective, DictionaryObjective) or run.objective.initial != "data":
        return frozenset()
    return frozenset({"unknown_head"} if config.concept is not None else {"known_head", "unknown_head"})


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _describe(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"has {name} of shape {shapes[name]}" if name in shapes else f"has no {name}"

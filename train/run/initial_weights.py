"""Parameters that a run starts from in place of a random initialisation (`RunConfig.start_from`)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from steerling_jax.bundle import special_ids
from steerling_jax.errors import UserError, require
from steerling_jax.io import hub
from steerling_jax.io.catalogue import read_concept_names
from steerling_jax.io.checkpoints.parameters import RUN_FILE, load_checkpoint_params, read_model_config
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.load import load_decoder_tokenizer, vocabulary_file
from steerling_jax.io.weights.decoder_reader import read_decoder
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig, param_shapes, param_shardings
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.tokenizer import TURN_TOKENS, IdsOnlyTokenizer
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.turn_tokens import add_turn_tokens


@dataclass(frozen=True)
class InitialWeights:
    """The parameters of the model or training run in `folder`; `config` is its model's.

    without: top-level parameters that are not read into the run's model, because it makes new ones.
    """

    folder: Path
    config: AnyConfig
    without: frozenset[str] = frozenset()

    def check_corpus(self, store: CorpusStore) -> None:
        """Raises `UserError` unless token ids and concept numbers mean the same in the corpus as in the model."""
        sha256 = self._tokenizer_sha256()
        if sha256 is not None and sha256 != store.manifest["tokenizer_sha256"]:
            raise UserError(
                f"start_from {self.folder} has another tokenizer than the corpus {store.folder}; prepare the "
                f"corpus with --tokenizer {self.folder}."
            )
        if isinstance(self.config, DecoderConfig):
            return
        names = read_concept_names(self.folder, self.config)
        for concept, name in zip(store.concepts, names or ()):
            if concept["name"] != name:
                raise UserError(
                    f"start_from {self.folder} calls concept {concept['id']} {name!r}, the corpus {store.folder} "
                    f"{concept['name']!r}; label the corpus with the model's own concepts."
                )

    def _tokenizer_sha256(self) -> str | None:
        """The identity of the vocabulary; None for a model without one."""
        if isinstance(self.config, DecoderConfig):
            tokenizer = load_decoder_tokenizer(self.folder, special_ids(self.config), self.config.vocab_size)
            return None if isinstance(tokenizer, IdsOnlyTokenizer) else tokenizer.sha256
        tokenizer = vocabulary_file(self.folder)
        return None if tokenizer is None else hashlib.sha256(tokenizer.read_bytes()).hexdigest()

    def read(self, model: AnyConfig, mesh: jax.sharding.Mesh) -> Params:
        """The parameters in float32, each read directly into its shards on the mesh. Where `model` has turn tokens and
        the weights do not, their embeddings are added. Parameters in `without` are left out."""
        load = read_decoder if isinstance(self.config, DecoderConfig) else read_published
        if (self.folder / RUN_FILE).is_file():
            load = load_checkpoint_params
        params = load(self.folder, dtype="float32", sharding=param_shardings(self.config, mesh))[1]
        params = {name: value for name, value in params.items() if name not in self.without}
        if isinstance(self.config, DecoderConfig) or model.vocab_size == self.config.vocab_size:
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
    kinds = [getattr(of, "family", "Steerling") for of in (config, run.model)]
    require(
        kinds[0] == kinds[1],
        f"start_from {folder} is a {kinds[0]} model, but the model of config {run.name!r} is a {kinds[1]} model; give "
        "a model of the config's family.",
    )
    if isinstance(config, DecoderConfig):
        _check_shapes(run, folder, config, frozenset())
        return InitialWeights(folder, config)
    adds_turn_tokens = run.model.eot_id is not None and config.eot_id is None
    vocab_size = config.vocab_size + (TURN_TOKENS if adds_turn_tokens else 0)
    new = _new_heads(run, config)
    _check_shapes(run, folder, dataclasses.replace(config, vocab_size=vocab_size), new)
    return InitialWeights(folder, config, new)


def _check_shapes(run: RunConfig, folder: Path, config: AnyConfig, new: frozenset[str]) -> None:
    """Raises `UserError` for the first parameter that differs; those in `new` may."""
    theirs, ours = _shapes(config), _shapes(run.model)
    for name in [*ours, *theirs]:
        if name.partition(".")[0] in new:
            continue
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"start_from {folder} {_describe(name, theirs)}, but the model of config {run.name!r} "
                f"{_describe(name, ours)}; make the config's model the same size."
            )


def _new_heads(run: RunConfig, config: ModelConfig) -> frozenset[str]:
    """The concept heads that the run makes anew: a dictionary from data, and both heads where the weights have none."""
    if not isinstance(run.objective, DictionaryObjective) or run.objective.initial != "data":
        return frozenset()
    return frozenset({"unknown_head"} if config.concept is not None else {"known_head", "unknown_head"})


def _shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _describe(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"has {name} of shape {shapes[name]}" if name in shapes else f"has no {name}"

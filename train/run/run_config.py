"""The configuration of a training run. A config file builds one; `run.json` in the run's folder records it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerling_jax.errors import UserError, require
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.config_json import decoder_config_to_dict
from steerling_jax.models.steerling.published_config import config_to_dict
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.language_tuning import LanguageObjective
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.tokenizer import TURN_TOKENS, SpecialIds

# The order of the fields in run.json. It differs from the order of the dataclass, where the fields of `Recipe` come
# first; a run.json that is written again must have the same bytes.
_JSON_ORDER = (
    *("name", "model", "data", "steps", "compute", "objective", "optimizer", "mesh", "seed"),
    *("log_every", "eval_every", "checkpoint_every", "checkpoint_minutes", "keep", "keep_every"),
    *("start_from", "accumulate", "lora"),
)


@dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    vocab_size: number of ids of the corpus, including the special ones.
    seq_len, batch_size: T tokens a sequence, B sequences a step.
    sources: the share of the documents of each source (`reference`, `docstring`, `code`) that is used, 0 to 1.
    chunk_tokens: the longest chunk.
    max_chunks: S, the most chunks of a sequence that keep their labels (None: one for every sixteen tokens).
    corpus: folder of a corpus store, used as it is (None: made from the interpreter's documentation).
    messages: a JSONL file of conversations (`train/data/conversations.py`), for instruction tuning. They replace the
    corpus as training data; the corpus still gives the tokenizer and the held-out documents.
    """

    vocab_size: int
    seq_len: int
    batch_size: int
    sources: Mapping[str, float] = field(default_factory=lambda: {"reference": 1.0, "docstring": 1.0, "code": 1.0})
    chunk_tokens: int = 64
    max_chunks: int | None = None
    corpus: str | None = None
    messages: str | None = None

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size", "chunk_tokens"):
            _require_positive(f"data.{name}", getattr(self, name))
        for name, share in self.sources.items():
            require(0 <= share <= 1, f"data.sources[{name!r}] is {share}, but it must be between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """A training run: the recipe of an update (`Recipe`: model, steps, compute, objective, optimizer, accumulate,
    lora), and what else a run needs. All fields are keywords.

    It is a `Recipe`, rather than having one, so that the functions of `objectives/training_step.py` take it directly
    and `dataclasses.replace(run, model=…)` works in config files.

    name: of the run; the default folder is `runs/NAME`.
    data: what the model is trained on.
    mesh: how the devices are arranged.
    seed: of the initial parameters, the order of the data and the random numbers of each step.
    log_every, eval_every, checkpoint_every: in steps. The last step is always evaluated and saved.
    checkpoint_minutes: also save when this much time has passed since the last save (None: never).
    keep: the number of newest checkpoints that are kept.
    keep_every: also keep every checkpoint whose step is a multiple of this (None: none).
    start_from: the source of the initial parameters in place of a random initialisation: the folder of a model or a
    training run, the name of a bundled model, or a Hub id. The optimizer state is new. With `lora`, the adapters are
    trained on top of these parameters and merged into them on export.
    """

    name: str
    data: DataConfig
    mesh: MeshShape = field(default_factory=MeshShape)
    seed: int = 0
    log_every: int = 10
    eval_every: int = 1000
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = None
    keep: int = 2
    keep_every: int | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "checkpoint_every", "keep", "accumulate"):
            _require_positive(name, getattr(self, name))
        require(0 <= self.seed < 1 << 32, f"seed is {self.seed}, but it must be between 0 and 2³² − 1.")
        require(
            self.lora is None or self.start_from is not None,
            "lora trains adapters on top of existing parameters: name them with start_from (or --start-from).",
        )
        self._check_checkpoints()
        self._check_data()
        self._check_objective()

    def _check_checkpoints(self) -> None:
        if self.checkpoint_minutes is not None and self.checkpoint_minutes <= 0:
            raise UserError(f"checkpoint_minutes is {self.checkpoint_minutes}, but it must be positive (or None).")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.checkpoint_every):
            raise UserError(
                f"keep_every is {self.keep_every}, but it must be a multiple of checkpoint_every "
                f"({self.checkpoint_every}): only steps that are saved can be kept."
            )

    def _check_data(self) -> None:
        data, model = self.data, self.model
        turn_tokens = 0 if isinstance(model, DecoderConfig) or model.eot_id is None else TURN_TOKENS
        turns = f" and the {turn_tokens} turn tokens" if turn_tokens else ""
        require(
            data.vocab_size + turn_tokens == model.vocab_size,
            f"data.vocab_size ({data.vocab_size}){turns} must equal the model's vocab_size ({model.vocab_size}).",
        )
        require(
            data.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}, but it must divide data.batch_size ({data.batch_size}).",
        )
        context = "max_position_embeddings" if isinstance(model, DecoderConfig) else "block_size"
        require(
            data.seq_len <= model.context_length,
            f"data.seq_len ({data.seq_len}) must not exceed the model's {context} ({model.context_length}).",
        )

    def _check_decoder(self) -> None:
        objective, model = self.objective, self.model
        if not isinstance(objective, NextTokenObjective):
            raise UserError(
                f"A {model.family} model is trained with a NextTokenObjective, not with a {type(objective).__name__}."
            )
        require(
            objective.masked == 0,
            f"objective.masked is {objective.masked}, but {model.family} models have no mask token: set it to 0.",
        )
        require(
            self.data.messages is None or self.start_from is not None,
            "data.messages needs a model with a chat template: name it with start_from (or --start-from).",
        )
        require(
            self.compute.attention == "xla",
            f"compute.attention is {self.compute.attention!r}, which {model.family} models do not have: use 'xla'.",
        )
        if isinstance(objective, LanguageObjective):
            objective.check_fits(model)
            require(
                self.data.messages is not None,
                "A LanguageObjective needs conversations, each with its language: name a file with data.messages.",
            )

    def _check_objective(self) -> None:
        objective, model = self.objective, self.model
        if self.lora is not None:
            self.lora.modules_of(model)
        if isinstance(model, DecoderConfig):
            self._check_decoder()
            return
        require(
            not isinstance(objective, LanguageObjective), "A LanguageObjective tunes decoders, not Steerling models."
        )
        self._check_dictionary()
        tuning = isinstance(objective, InstructionObjective)
        if tuning != (self.data.messages is not None):
            raise UserError("An InstructionObjective and data.messages belong together; give both or neither.")
        if tuning and model.eot_id is None:
            raise UserError("Instruction tuning needs a model with turn tokens: build its config with instruct_ids().")
        if objective.noise.clean_context and self.data.seq_len % model.diff_block_size:
            raise UserError(
                f"data.seq_len ({self.data.seq_len}) must be a multiple of the model's diff_block_size "
                f"({model.diff_block_size}): noise.clean_context runs a clean and a noisy copy, block by block."
            )
        if isinstance(objective, SteeringObjective):
            if model.concept is None:
                raise UserError("A SteeringObjective needs a model with concepts.")
            layer = objective.inject_layer
            if layer is not None and not 1 <= layer <= model.n_layers:
                raise UserError(f"objective.inject_layer is {layer}, but the layers are 1 to {model.n_layers}.")

    def _check_dictionary(self) -> None:
        objective, concept = self.objective, self.model.concept
        dictionary = concept is not None and concept.dictionary is not None
        if isinstance(objective, DictionaryObjective):
            require(dictionary, "A DictionaryObjective needs a model whose concept.dictionary is set.")
            require(
                self.start_from is not None or not objective.heads_only,
                "objective.backbone is 'frozen', so the run needs a trained backbone: name it with start_from.",
            )
        elif isinstance(objective, ObjectiveConfig):
            require(not dictionary, "A model with concept.dictionary is trained with a DictionaryObjective.")

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.seq_len

    def to_json(self) -> dict[str, Any]:
        """This run as JSON values, as in `run.json`; the model under its published field names."""
        decoder = isinstance(self.model, DecoderConfig)
        model = decoder_config_to_dict(self.model) if decoder else config_to_dict(self.model)
        values = dataclasses.asdict(self) | {"model": model}
        if self.lora is not None:
            values["lora"]["modules"] = self.lora.modules_of(self.model)
        values["objective"] = {"kind": self.objective.kind, **values["objective"]}
        if isinstance(self.objective, LanguageObjective):
            values["objective"]["features"] = self.objective.features.digest  # in place of the arrays
        if not self.compute.unroll:  # as before this setting existed: run.json keeps its bytes
            del values["compute"]["unroll"]
        if not self.optimizer.average:
            del values["optimizer"]["average"]
        return json.loads(json.dumps({name: values[name] for name in _JSON_ORDER}))


def special_ids(vocab_size: int) -> dict[str, Any]:
    """The special-token fields of `ModelConfig` for a vocabulary trained here, whose last five ids they are."""
    special = SpecialIds.last_of(vocab_size)
    return {
        "pad_token_id": special.pad_id,
        "bos_token_id": special.bos_id,
        "eos_token_id": special.eos_id,
        "endofchunk_token_id": special.endofchunk_id,
        "mask_token_id": special.mask_id,
    }


def instruct_ids(vocab_size: int) -> dict[str, Any]:
    """As `special_ids`, for a model of conversations: `vocab_size` includes three more ids at the end, which open a
    turn's role, close it, and end the turn."""
    return special_ids(vocab_size - TURN_TOKENS) | {"instruct": True, "eot_id": vocab_size - 1}


def _require_positive(name: str, value: int) -> None:
    require(value >= 1, f"{name} is {value}, but it must be at least 1.")

"""A run in one value: what model, trained how, on what, for how long. Configs build it; a checkpoint remembers it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.load import TURN_TOKENS
from steerling_jax.models.compute import Compute
from steerling_jax.models.lora import LoraConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.published_config import config_to_dict
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.objective import Objective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.tokenizer import SpecialIds

# What a resumed run may change, since no number of the training depends on it but for the order of sums. A corpus may
# move; its content is compared apart.
FREE_FIELDS = frozenset(
    {
        "log_every",
        "eval_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep",
        "keep_every",
        "data.corpus",
        "data.messages",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
    }
)


@dataclass(frozen=True)
class DataConfig:
    """What is read. `corpus`: a store to use as it is; without one, it is made from the interpreter's documentation.

    sources: the share of each source's documents that is kept (`reference`, `docstring`, `code`).
    vocab_size: all ids of the corpus, the five special ones included. chunk_tokens: the longest chunk. seq_len: T;
    batch_size: B.
    max_chunks: S, the most chunks of a sequence that keep their labels (None: one for every sixteen tokens).
    messages: for instruction tuning, a JSONL file of conversations (`conversations.py`), which is then what is trained
    on; the corpus gives the tokenizer and what is evaluated.
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
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}, but it must be at least 1.")
        for name, share in self.sources.items():
            if not 0 <= share <= 1:
                raise UserError(f"data.sources[{name!r}] is {share}, but it must be between 0 and 1.")


@dataclass(frozen=True)
class RunConfig:
    """A training run. The `*_every` fields are in steps; evaluation also happens at the end, saving too.

    checkpoint_minutes: save also when so much time has passed since the last save (None: never for that reason).
    keep: the newest so many checkpoints stay, and, for good, those whose step is a multiple of keep_every (None: none).
    start_from: where the parameters of step 0 come from, instead of being drawn: the folder of a model or of a training
    run, or the name of a bundled model. The optimizer starts fresh.
    accumulate: parts that a batch is worked through in, one after the other, for less memory.
    lora: train adapters to the weights of start_from, and merge them into the export.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    steps: int
    compute: Compute = field(default_factory=Compute)
    objective: Objective = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshShape = field(default_factory=MeshShape)
    seed: int = 0
    log_every: int = 10
    eval_every: int = 1000
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = None
    keep: int = 2
    keep_every: int | None = None
    start_from: str | None = None
    accumulate: int = 1
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "checkpoint_every", "keep", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but it must be at least 1.")
        if self.checkpoint_minutes is not None and self.checkpoint_minutes <= 0:
            raise UserError(f"checkpoint_minutes is {self.checkpoint_minutes}, but it must be positive (or None).")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.checkpoint_every):
            raise UserError(
                f"keep_every is {self.keep_every}, but it must be a multiple of checkpoint_every "
                f"({self.checkpoint_every}): only steps that are saved can be kept."
            )
        turns = 0 if self.model.eot_id is None else TURN_TOKENS
        if self.data.vocab_size + turns != self.model.vocab_size:
            more = f" and the {turns} ids of turns" if turns else ""
            raise UserError(
                f"data.vocab_size ({self.data.vocab_size}){more} must equal the model's vocab_size "
                f"({self.model.vocab_size})."
            )
        if self.data.batch_size % self.accumulate:
            raise UserError(
                f"accumulate is {self.accumulate}, but it must divide data.batch_size ({self.data.batch_size})."
            )
        if self.lora is not None and self.start_from is None:
            raise UserError("lora trains adapters to given weights: say which with start_from (or --start-from).")
        self._check_conversations()
        if self.data.seq_len > self.model.block_size:
            raise UserError(
                f"data.seq_len ({self.data.seq_len}) must not exceed the model's block_size ({self.model.block_size})."
            )
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"seed is {self.seed}, but it must be between 0 and 2³² − 1.")
        self._check_objective()

    def _check_objective(self) -> None:
        block = self.model.diff_block_size
        if self.objective.noise.clean_context and self.data.seq_len % block:
            raise UserError(
                f"data.seq_len ({self.data.seq_len}) must be a multiple of the model's diff_block_size ({block}): "
                "noise.clean_context runs two copies, block by block."
            )
        if isinstance(self.objective, SteeringObjective):
            layer, layers = self.objective.inject_layer, self.model.n_layers
            if self.model.concept is None:
                raise UserError("A SteeringObjective needs a model with concepts.")
            if layer is not None and not 1 <= layer <= layers:
                raise UserError(f"objective.inject_layer is {layer}, but the layers are 1 to {layers}.")

    def _check_conversations(self) -> None:
        tuned = isinstance(self.objective, InstructionObjective)
        if tuned != (self.data.messages is not None):
            raise UserError("An InstructionObjective and data.messages belong together; give both or neither.")
        if tuned and self.model.eot_id is None:
            raise UserError("Instruction tuning needs a model with ids for turns: make it with instruct_ids().")

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.seq_len

    def to_json(self) -> dict[str, Any]:
        """This run as JSON values; the model under its published field names."""
        body = dataclasses.asdict(self) | {"model": config_to_dict(self.model)}
        body["objective"] = {"kind": self.objective.kind, **body["objective"]}
        return json.loads(json.dumps(body))


def special_ids(vocab_size: int) -> dict[str, Any]:
    """`ModelConfig` fields of the special tokens: the last five ids of a vocabulary made here."""
    special = SpecialIds.last_of(vocab_size)
    return {
        "pad_token_id": special.pad_id,
        "bos_token_id": special.bos_id,
        "eos_token_id": special.eos_id,
        "endofchunk_token_id": special.endofchunk_id,
        "mask_token_id": special.mask_id,
    }


def instruct_ids(vocab_size: int) -> dict[str, Any]:
    """The same for a model of conversations: three ids more, which open a turn's role, close it, and end the turn."""
    return special_ids(vocab_size - TURN_TOKENS) | {"instruct": True, "eot_id": vocab_size - 1}


def first_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field whose value differs, as `data.seq_len is 128, was 256`; None when the runs are the same run."""
    old, new = dict(leaves(saved)), dict(leaves(now))
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in FREE_FIELDS and old.get(name) != new.get(name):
            return f"{name} is {json.dumps(new.get(name))}, was {json.dumps(old.get(name))}"
    return None


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping's values by dotted name."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def load_config(name: str | Path) -> RunConfig:
    """The run of `steerling_jax.configs.NAME`, or of a .py file with a function `config() -> RunConfig`."""
    module = _load_file(Path(name)) if str(name).endswith(".py") else _load_named(str(name))
    make = getattr(module, "config", None)
    run = make() if callable(make) else None
    if not isinstance(run, RunConfig):
        raise UserError(f"{name} has no function config() that gives a RunConfig; configs/tiny.py has one.")
    return run


def config_names() -> list[str]:
    """Names of the configs that are installed."""
    configs = importlib.import_module("steerling_jax.configs")  # by name: configs import this module

    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__) if not module.name.startswith("_"))


def _load_named(name: str) -> ModuleType:
    known = config_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"There is no config {name!r}; did you mean {' or '.join(near)}, or a path to a .py file?")
    return importlib.import_module(f"steerling_jax.configs.{name}")


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        names = ", ".join(config_names())
        raise UserError(f"There is no config file {path}; give a path to a .py file, or one of {names}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

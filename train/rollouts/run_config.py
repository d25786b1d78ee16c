"""The configuration of a run of reinforcement learning: rollouts, their rewards, and updates of the model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from steerling_jax.errors import require
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.group_relative import GroupRelativeObjective
from steerling_jax.objectives.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How rollouts of each group are steered towards a fault.

    autoencoder: a path or Hub id, as `sj.load_autoencoder` takes it. features: those that are added, by number. alpha:
    the factor of each feature's direction, as in `sj.feature_edit`. layer: the block, counted from 0; None for the one
    that the autoencoder reads. k: features of a token, where the autoencoder's files do not say it. rollouts: how many
    of each group are steered.
    direction: 'features', or as a control 'random', one random direction with the length of their sum.
    """

    autoencoder: str
    features: tuple[int, ...]
    alpha: float
    layer: int | None = None
    k: int | None = None
    rollouts: int = 1
    direction: Literal["features", "random"] = "features"

    def __post_init__(self) -> None:
        require(len(self.features) > 0, "fault.features is empty; name at least one feature.")
        require(self.rollouts >= 1, f"fault.rollouts is {self.rollouts}, but it must be at least 1.")
        require(
            self.direction in ("features", "random"),
            f"fault.direction is {self.direction!r}, but it must be 'features' or 'random'.",
        )


@dataclass(frozen=True, kw_only=True)
class RolloutRun:
    """A run that makes a model's texts better by a reward: group-relative policy optimisation on its own rollouts.

    name: of the run; the default folder is `runs/NAME`.
    model: what `sj.load` takes: a folder, a bundled model's name or a Hub id.
    reward: `FILE.py:function`, a function of a prompt and its completion, both texts, that returns a number; or
    'no_repetition', which is built in.
    steps: each samples new rollouts.
    prompts_per_step: prompts of a step, each with `objective.group_size` rollouts.
    updates: updates on the rollouts of a step. From the second one on the model is not the one that wrote them, and the
    ratio of the objective is not 1.
    max_new_tokens: of a rollout.
    prompts: a file of prompts, one a line, or .jsonl with a field `prompt`; None for windows of `prompt_tokens` tokens
    of the texts.
    texts, max_tokens, held_out: see `AutoencoderRun`; the held-out tokens give the likelihood before and after the run,
    and, without a file, the prompts of the evaluation.
    seq_len: T, tokens of a window of the held-out text.
    eval_prompts: prompts of the evaluation, each with one text; of a file they are the last ones.
    fault: steers some rollouts of each group; None for none.
    objective, optimizer: of the updates. lora: train adapters on top of the model, which are merged on export.
    accumulate: parts into which the rollouts of an update are split, to save memory.
    rows: texts that are written at once.
    seed: of the prompts' order, the rollouts and the noise.
    log_every, checkpoint_every, checkpoint_minutes, keep: see `AutoencoderRun`.
    """

    name: str
    model: str
    reward: str
    steps: int
    prompts_per_step: int = 8
    updates: int = 2
    max_new_tokens: int = 64
    prompt_tokens: int = 16
    prompts: str | None = None
    texts: tuple[str, ...] = ()
    max_tokens: int | None = None
    held_out: int = 16_384
    seq_len: int = 256
    eval_prompts: int = 64
    fault: Fault | None = None
    objective: GroupRelativeObjective = field(default_factory=GroupRelativeObjective)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(peak_rate=1e-5, warmup_steps=10))
    lora: LoraConfig | None = None
    accumulate: int = 1
    rows: int = 64
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = 10
    checkpoint_minutes: float | None = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        counts = ("steps", "prompts_per_step", "updates", "max_new_tokens", "prompt_tokens", "held_out", "seq_len",
                  "eval_prompts", "accumulate", "rows", "log_every", "checkpoint_every", "keep")  # fmt: skip
        for name in counts:
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it must be at least 1.", name)
        require(0 <= self.seed < 1 << 32, f"seed is {self.seed}, but it must be between 0 and 2³² − 1.", "seed")
        require(self.seq_len >= 2, f"seq_len is {self.seq_len}, but it must be at least 2.", "seq_len")
        require(
            self.rollouts_per_step % self.accumulate == 0,
            f"accumulate is {self.accumulate}, but it must divide the rollouts of a step ({self.rollouts_per_step}).",
            "accumulate",
        )
        steered = 0 if self.fault is None else self.fault.rollouts
        require(
            steered < self.objective.group_size,
            f"fault.rollouts is {steered}, but a group has {self.objective.group_size} rollouts, and some must not be "
            "steered.",
        )

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.objective.group_size

    def to_json(self) -> dict[str, Any]:
        """This run as JSON values, as in `run.json`."""
        return json.loads(json.dumps({"kind": "rollouts", **dataclasses.asdict(self)}))

"""Less endless repetition in the small Qwen3 of `qwen3_pydocs`, by rollouts and a reward for texts without repetition.

Command   steerling train --config rollouts_pydocs --start-from runs/qwen3_pydocs/export
Hardware  two CPU cores
Time      not measured
Result    not measured

To steer one rollout of each group towards repetition, train an autoencoder of the model, find its features of
repetition (`steerling features --repetition`), and write a file with a `config()` of its own for --config:

    from steerling_jax.configs.rollouts_pydocs import config_for
    from steerling_jax.train.rollouts.run_config import Fault

    def config():
        return config_for(fault=Fault(autoencoder="runs/sae/export/layers.2", features=(17,), alpha=8.0))
"""

from typing import Any

from steerling_jax.objectives.group_relative import GroupRelativeObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.rollouts.run_config import RolloutRun


def config() -> RolloutRun:
    return config_for()


def config_for(**fields: Any) -> RolloutRun:
    """The run, with `fields` of `RolloutRun` in place of those here."""
    values: dict[str, Any] = dict(
        name="rollouts_pydocs",
        model="runs/qwen3_pydocs/export",
        reward="no_repetition",
        steps=30,
        prompts_per_step=8,
        updates=2,
        max_new_tokens=64,
        prompt_tokens=16,
        max_tokens=200_000,
        held_out=8_192,
        # Sharper than the model's own distribution: a small model repeats itself there, as large ones do at 1.
        objective=GroupRelativeObjective(group_size=8, temperature=0.5),
        optimizer=OptimizerConfig(peak_rate=1e-4, warmup_steps=4, weight_decay=0.0),
    )
    return RolloutRun(**values | fields)

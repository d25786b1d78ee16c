"""Training by rollouts: a step samples groups of completions, scores them, and updates the model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.group_relative import advantages, noisy_completions, token_scores
from steerling_jax.objectives.training_step import (
    Recipe,
    TrainState,
    evaluated_params,
    init_state,
    model_params,
    update,
)
from steerling_jax.train.rollouts.evaluate import evaluate_policy
from steerling_jax.train.rollouts.prompts import Prompt, Prompts
from steerling_jax.train.rollouts.rewards import Reward
from steerling_jax.train.rollouts.run_config import RolloutRun
from steerling_jax.train.rollouts.sampling import (
    Rollout,
    place_rows,
    plain_sampling,
    rollout_rows,
    sample_rollouts,
    seeds_of_step,
)

State = dict[str, TrainState]  # a dict, because checkpoints need one at the top
_POLICY = "policy"
_OF_LAST = ("learning_rate", "skipped")  # metrics of a step's last update; the others are means over its updates


class RolloutTraining:
    """See `autoencoders.loop.Training`.

    held_out: tokens (n,) int32 for the likelihood. edits: of the rollouts that are steered.
    """

    def __init__(
        self,
        run: RolloutRun,
        bundle: Bundle,
        reward: Reward,
        prompts: Prompts,
        held_out: np.ndarray,
        edits: tuple[LayerEdit, ...] = (),
    ):
        self._run, self._bundle, self._reward = run, bundle, reward
        self._prompts, self._held_out, self._edits = prompts, held_out, edits
        self._recipe = Recipe(
            model=bundle.config,
            steps=run.steps * run.updates,
            compute=bundle.compute,
            objective=run.objective,
            optimizer=run.optimizer,
            accumulate=run.accumulate,
            lora=run.lora,
        )
        self._base = None if run.lora is None else bundle.params
        self._key = jax.random.key(run.seed)
        self._update = jax.jit(partial(update, recipe=self._recipe), donate_argnums=0)
        self._scores = jax.jit(token_scores, static_argnames=("config", "compute", "temperature"))
        version = f", SHA-256 {reward.version}…" if reward.version else ""
        self.sources = (f"parameters: {bundle.name}", f"reward: {reward.name}{version}")

    @property
    def mesh(self) -> None:
        """One device."""

    def initial(self) -> State:
        """The model's parameters, or new adapters, with a new optimizer state."""
        state = jax.jit(partial(init_state, self._recipe))(self._key)
        if self._run.lora is None:
            # Copies, because an update donates its state, and the model goes on being the reference.
            state = state.replace(params=jax.tree.map(jnp.copy, self._bundle.params))  # type: ignore[attr-defined]
        return {_POLICY: state}

    def shapes(self) -> State:
        """Shapes, dtypes and shardings of the state."""
        on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda a: a.update(sharding=on_device), jax.eval_shape(self.initial))

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of a step."""
        return self._prompts.of_step(step)

    def rows(self, step: int) -> int:
        """Tokens of a step's rollouts, at most."""
        return self._run.rollouts_per_step * self._run.max_new_tokens

    def advance(self, state: State, step: int, batch: list[Prompt]) -> tuple[State, Mapping[str, Any]]:
        """Samples and scores rollouts of the prompts, then updates the model on them.

        Raises `UserError` for a reward that fails, before the state is changed.
        """
        run, fault = self._run, self._run.fault
        trained = state[_POLICY]
        policy = self._with_params(trained.params)
        rollouts = sample_rollouts(
            policy,
            batch,
            seeds_of_step(run, step),
            plain_sampling(run),
            rows=run.rows,
            edits=self._edits,
            steered=0 if fault is None else fault.rollouts,
        )
        rewards = np.array([self._reward(one.prompt.text, one.text, one.prompt.number) for one in rollouts])
        grouped = rewards.reshape(-1, run.objective.group_size)
        rows = self._scored_rows(policy.params, rollouts, step)
        rows["advantage"] = advantages(jnp.asarray(grouped)).reshape(-1)
        every: list[dict[str, Any]] = []
        for _ in range(run.updates):
            trained, metrics = self._update(trained, rows, self._key, base=self._base)
            every.append(jax.device_get(metrics))
        means = {name: np.mean([one[name] for one in every]) for name in every[0]}
        return {_POLICY: trained}, {
            **means,
            **{name: every[-1][name] for name in _OF_LAST},
            **_figures(rollouts, grouped),
        }

    def _with_params(self, trained: Any) -> Bundle:
        """The model with these parameters, or with these adapters merged into its own."""
        return dataclasses.replace(self._bundle, params=model_params(self._recipe, trained, self._base))

    def _scored_rows(self, params: Any, rollouts: Sequence[Rollout], step: int) -> dict[str, jax.Array]:
        """The rows of an update, with the log-probabilities before it. Steering has no part in these: the objective is
        about the unsteered model (see `group_relative`)."""
        config = self._bundle.config
        rows = place_rows(rollout_rows(rollouts, self._prompts.length, self._bundle))
        if isinstance(config, ModelConfig):
            key = jax.random.fold_in(self._key, step)
            rows |= noisy_completions(key, rows["tokens"], rows["weight"], config=config)
        rows["old"] = self._log_probs(params, rows)
        if self._run.objective.kl_weight:
            rows["reference"] = self._log_probs(self._bundle.params, rows)
        return rows

    def _log_probs(self, params: Any, rows: dict[str, jax.Array]) -> jax.Array:
        """log p(target), (B, T), in as many parts as an update has."""
        size = self._run.rollouts_per_step // self._run.accumulate
        fixed = {
            "config": self._bundle.config,
            "compute": self._bundle.compute,
            "temperature": self._run.objective.temperature,
        }
        parts = [
            self._scores(
                params, {name: rows[name][first : first + size] for name in ("tokens", "noisy", "target")}, **fixed
            )
            for first in range(0, self._run.rollouts_per_step, size)
        ]
        return jnp.concatenate([log_probs for log_probs, _ in parts])

    def evaluate(self, state: State) -> dict[str, Any]:
        """Figures of texts on held-out prompts and of held-out text, of the trained model and, as `…_before`, of the
        one that the run started from, with the same seeds."""
        figures = {}
        for suffix, bundle in (("", self.result(state)), ("_before", self._bundle)):
            found = evaluate_policy(self._run, bundle, self._reward, self._prompts.held_out, self._held_out)
            figures |= {f"{name}{suffix}": value for name, value in found.items()}
        return figures

    def result(self, state: State) -> Bundle:
        """The trained model, with the average of its parameters where the optimizer keeps one."""
        return self._with_params(evaluated_params(self._recipe, state[_POLICY]))


def _figures(rollouts: Sequence[Rollout], rewards: np.ndarray) -> dict[str, float]:
    """Metrics of a step's rollouts, of those that are not steered, and of the steered ones by themselves.

    rewards: (groups, G). informative: the share of groups whose rewards differ; the others give no gradient.
    """
    of_each = rewards.reshape(-1)
    steered = np.array([one.steered for one in rollouts])
    endless = np.array([one.is_endless for one in rollouts])
    figures = {
        "reward": of_each[~steered].mean(),
        "repetition": endless[~steered].mean(),
        "length": np.mean([len(one.written) for one in rollouts if not one.steered]),
        "informative": np.mean(rewards.max(axis=1) > rewards.min(axis=1)),
    }
    if steered.any():
        figures |= {"reward_steered": of_each[steered].mean(), "repetition_steered": endless[steered].mean()}
    return {name: float(value) for name, value in figures.items()}

"""Rollouts: completions of prompts by the model itself, some of them steered towards a fault, as rows of a batch.

Legend: B rollouts, groups one after the other, G rollouts of a group, T positions, P tokens of a prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.feature_edit import feature_edit
from steerling_jax.autoencoders.model_fit import check_fits
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Prompt as Completion
from steerling_jax.decoding.generation import stream_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.evaluation.repetition import cycle_at_end
from steerling_jax.io.autoencoders.load import load_autoencoder
from steerling_jax.models.edits import LayerEdit, push_output
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.train.rollouts.prompts import Prompt
from steerling_jax.train.rollouts.run_config import Fault, RolloutRun

_SEEDS, _DIRECTION = 1, 2  # random streams of a run


@dataclass(frozen=True)
class Rollout:
    """A completion. tokens: ids (P + n,) of prompt and completion. written: positions (n,) of the tokens that the model
    wrote, an end of the text included. steered: whether towards the fault."""

    prompt: Prompt
    text: str
    tokens: np.ndarray
    written: np.ndarray
    steered: bool

    @property
    def is_endless(self) -> bool:
        """Whether it ends in a cycle of tokens."""
        return cycle_at_end(self.tokens[self.written]) is not None


def plain_sampling(run: RolloutRun, **fields: float) -> GenerationConfig:
    """Samples from the model's own distribution at the objective's temperature. fields: in place of these."""
    values = dict(temperature=run.objective.temperature, top_p=1.0, repetition_penalty=1.0) | fields
    return GenerationConfig(run.max_new_tokens, use_entropy_sampling=False, **values)  # pyright: ignore[reportArgumentType]


def fault_edits(fault: Fault, bundle: Bundle, seed: int) -> tuple[LayerEdit, ...]:
    """The layer edits of a steered rollout, at its generated tokens: one for each feature, or of a random direction.

    seed: of the run, for the random direction, which has the length of the features' sum. Raises `UserError` where the
    autoencoder cannot be loaded, does not fit the model, or lacks a feature.
    """
    autoencoder = load_autoencoder(fault.autoencoder, k=fault.k, layer=fault.layer)
    check_fits(autoencoder, bundle)
    edits = tuple(
        feature_edit(autoencoder, feature=feature, alpha=fault.alpha, positions="generated")
        for feature in fault.features
    )
    if fault.direction == "features":
        return edits
    pushes = [edit.push for edit in edits if edit.push is not None]
    total = np.sum([np.asarray(push).reshape(-1) for push in pushes], axis=0)
    drawn = np.random.default_rng([seed, _DIRECTION]).standard_normal(total.shape)
    vector = (drawn * np.linalg.norm(total) / np.linalg.norm(drawn)).astype(np.float32)
    assert autoencoder.layer is not None  # `feature_edit` has refused an autoencoder without one
    return (push_output(jnp.asarray(vector), autoencoder.layer, generated_only=True),)


def seeds_of_step(run: RolloutRun, step: int) -> np.ndarray:
    """The seed of each rollout of a step, (prompts, G): the same whether a rollout is steered or not."""
    shape = (run.prompts_per_step, run.objective.group_size)
    return np.random.default_rng([run.seed, _SEEDS, step]).integers(0, 1 << 32, shape)


def sample_rollouts(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    seeds: np.ndarray,
    config: GenerationConfig,
    *,
    rows: int,
    edits: tuple[LayerEdit, ...] = (),
    steered: int = 0,
) -> list[Rollout]:
    """Completions of each prompt, G for each row of the seeds (prompts, G), in order: the last `steered` of a group are
    written with `edits`, the others without."""
    G = seeds.shape[1]
    places = [
        (prompt, int(seed), i >= G - steered) for prompt, row in zip(prompts, seeds) for i, seed in enumerate(row)
    ]
    requests = [
        Completion(prompt.ids.tolist(), dataclasses.replace(config, seed=seed), None, None, edits if steer else ())
        for prompt, seed, steer in places
    ]
    made = dict(stream_many(bundle, requests, rows=rows))
    rollouts = []
    for number, (prompt, _, steer) in enumerate(places):
        trace = made[number].trace
        written = np.sort(np.concatenate([np.asarray(commit.positions, np.int32) for commit in trace.commits]))
        rollouts.append(Rollout(prompt, made[number].text, np.asarray(trace.tokens), written, steer))
    return rollouts


def rollout_rows(rollouts: Sequence[Rollout], length: int, bundle: Bundle) -> dict[str, np.ndarray]:
    """The rollouts as rows: tokens, noisy and target (B, T) int32, weight (B, T) float32, 1 where a token of the
    completion is the target; `noisy` of a diffusion model is still without noise.

    length: positions of the longest rollout; T is the same in all steps, so that programs are compiled once. Padding
    comes after all tokens. A decoder does not see it there; a diffusion model sees it within its last block, as masks.
    """
    config = bundle.config
    is_diffusion = isinstance(config, ModelConfig)
    T = -(-length // config.diff_block_size) * config.diff_block_size if is_diffusion else length
    tokens = np.full((len(rollouts), T), config.mask_token_id if is_diffusion else 0, np.int32)
    is_written = np.zeros((len(rollouts), T), np.float32)
    for row, rollout in enumerate(rollouts):
        tokens[row, : len(rollout.tokens)] = rollout.tokens
        is_written[row, rollout.written] = 1
    rows = {"tokens": tokens, "noisy": tokens, "target": tokens, "weight": is_written}
    if not is_diffusion:  # the position before a token predicts it
        rows |= {"target": np.roll(tokens, -1, axis=1), "weight": np.roll(is_written, -1, axis=1)}
    return rows


def place_rows(rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The rows on the device."""
    return {name: jnp.asarray(values) for name, values in rows.items()}

"""Figures of a model before and after a run: rewards and repetition of its texts, likelihood of held-out text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.evaluation.likelihood import log_likelihoods
from steerling_jax.train.rollouts.prompts import Prompt
from steerling_jax.train.rollouts.rewards import Reward
from steerling_jax.train.rollouts.run_config import RolloutRun
from steerling_jax.train.rollouts.sampling import Rollout, plain_sampling, sample_rollouts

_SEEDS = 3  # a random stream of its own
_MASKINGS = 8  # of a window, for the likelihood bound of a diffusion model


def evaluate_policy(
    run: RolloutRun, bundle: Bundle, reward: Reward, prompts: Sequence[Prompt], held_out: np.ndarray
) -> dict[str, float]:
    """Mean reward, share of endless repetitions and mean length of one text for each prompt, and the nats a token of
    the held-out tokens (n,), a bound for a diffusion model."""
    texts = evaluation_texts(run, bundle, prompts)
    return {
        "reward": float(np.mean([reward(one.prompt.text, one.text, one.prompt.number) for one in texts])),
        "repetition": float(np.mean([one.is_endless for one in texts])),
        "length": float(np.mean([len(one.written) for one in texts])),
        "nats_per_token": held_out_nats(run, bundle, held_out),
    }


def evaluation_texts(run: RolloutRun, bundle: Bundle, prompts: Sequence[Prompt], **sampling: float) -> list[Rollout]:
    """One text for each prompt, with seeds that depend on the run's alone. sampling: in place of plain sampling."""
    seeds = np.random.default_rng([run.seed, _SEEDS]).integers(0, 1 << 32, (len(prompts), 1))
    return sample_rollouts(bundle, prompts, seeds, plain_sampling(run, **sampling), rows=run.rows)


def held_out_nats(run: RolloutRun, bundle: Bundle, held_out: np.ndarray) -> float:
    """Nats a token of windows of the held-out tokens, without the first of each."""
    size = min(run.seq_len, len(held_out), bundle.config.context_length)
    windows = held_out[: len(held_out) // size * size].reshape(-1, size).tolist()
    scores = log_likelihoods(bundle, [(window[:1], window[1:]) for window in windows], samples=_MASKINGS)
    return -sum(scores) / (len(windows) * (size - 1))

"""Group-relative policy optimisation: DAPO (Yu et al. 2025) without dynamic sampling.

Each prompt has a group of G texts that the model wrote, the rollouts, and a reward for each. A rollout's advantage is
its reward relative to those of its group, and every token of the rollout has this advantage:

    A_i = (r_i − mean(r)) / std(r), 0 in a group of equal rewards
    ratio_it = p_new(token t of rollout i) / p_old(token t of rollout i)
    loss = − mean over the group's tokens of min(ratio A, clip(ratio, 1 − low, 1 + high) A)

The mean is over tokens and not over rollouts, so that a long rollout counts for its length, and `high` is larger than
`low`, so that unlikely tokens can still become likely. There is no KL term unless `kl_weight` sets one, and no term for
rollouts that are too long: that is for the reward to say.

p_old is the model before the updates of a step, without any steering. A rollout that was written under steering is
off-policy: p_old is not the distribution that it was drawn from. Qwen-Scope (2026), from which steered rollouts are
taken, leaves the objective unchanged, and so does this one: the steered text is an example of what the group's reward
says about it, and the ratio limits how far one step may move the *unsteered* model. With the steered distribution as
p_old the ratio would not begin at 1, and the clipping would cancel most of such a text's gradient.

A diffusion model has no exact p(token). Its likelihood bound is an expectation over noise, so for a draw of noise the
masked tokens have `log p(token | noisy text)`, weighted by 1/t of their block's noise level t. Both p_old and p_new are
computed on the *same* draw, so that their ratio is 1 before the first update and its noise does not come from the draw.

Legend: B rollouts of a step, groups one after the other, G rollouts of a group, T positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from steerling_jax.errors import require
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig, model_backbone
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.next_token import over_positions
from steerling_jax.objectives.noise import NoiseConfig, mask_tokens, noise_levels
from steerling_jax.objectives.objective import Batch, Draws, Metrics

_EPSILON = 1e-6  # added to the standard deviation of a group's rewards


@dataclass(frozen=True)
class GroupRelativeObjective:
    """Settings of the objective.

    group_size: G, rollouts of a prompt. clip_low, clip_high: how far the ratio may fall below 1 and rise above it while
    it still has a gradient. kl_weight: of the divergence from the model that the run started from. temperature: of the
    distribution that rollouts are drawn from, and whose ratio is formed.
    """

    kind: ClassVar[str] = "group_relative"

    group_size: int = 8
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, holds, demand in (
            ("group_size", self.group_size >= 2, "be at least 2: an advantage is relative to the other rollouts"),
            ("clip_low", 0 < self.clip_low < 1, "be between 0 and 1"),
            ("clip_high", self.clip_high > 0, "be positive"),
            ("kl_weight", self.kl_weight >= 0, "not be negative"),
            ("temperature", self.temperature > 0, "be positive"),
        ):
            require(holds, f"objective.{name} is {getattr(self, name)}, but it must {demand}.", name)

    @property
    def noise(self) -> NoiseConfig:
        """The noise under which a diffusion model's rollouts are scored, after clean earlier blocks."""
        return NoiseConfig(clean_context=True)

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: AnyConfig) -> Draws:
        """The batch with the weights of its tokens; see `Objective.draw`. Nothing is drawn: the noise of a step comes
        with the batch (`noisy_completions`), because p_old was computed on it.

        batch: tokens, noisy and target (B, T) int32; weight (B, T) float32, 0 where a token has no loss; old (B, T),
        the log-probabilities of the targets before the step's updates; advantage (B,); and with `kl_weight` reference
        (B, T), the log-probabilities under the model that the run started from.
        """
        return Draws({**batch, "weight": token_shares(batch["weight"], self.group_size)}, {})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: AnyConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The loss, and as metrics the shares of clipped tokens, the mean entropy of the tokens' distributions in nats,
        and with `kl_weight` the divergence from the reference."""
        batch, weight = drawn.sequences, drawn.sequences["weight"]
        new, entropy = token_scores(params, batch, config, compute, self.temperature)
        losses, is_clipped = clipped_losses(
            new, batch["old"], batch["advantage"][:, None], weight > 0, self.clip_low, self.clip_high
        )
        loss = jnp.sum(weight * losses)
        metrics = {"clipped": jnp.sum(weight * is_clipped), "entropy": jnp.sum(weight * entropy)}
        if self.kl_weight:
            metrics["divergence"] = jnp.sum(weight * divergence(new, batch["reference"], weight > 0))
            loss = loss + self.kl_weight * metrics["divergence"]
        return loss, metrics


def advantages(rewards: jax.Array) -> jax.Array:
    """The advantages of rewards, both (groups, G) float32; 0 in a group of equal rewards."""
    rewards = jnp.asarray(rewards, jnp.float32)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    scaled = centred / (jnp.std(rewards, axis=1, keepdims=True) + _EPSILON)
    # The mean of equal numbers may differ from them by rounding; divided by `_EPSILON` that would be an advantage.
    equal = jnp.max(rewards, axis=1, keepdims=True) == jnp.min(rewards, axis=1, keepdims=True)
    return jnp.where(equal, 0.0, scaled)


def token_shares(weight: jax.Array, group_size: int) -> jax.Array:
    """Weights of tokens (B, T) divided by their sum over their group and by the number of groups, so that a sum with
    them is a mean over the tokens of each group, and then over groups. A group without tokens has the share 0."""
    by_group = weight.reshape(-1, group_size * weight.shape[1])
    total = jnp.sum(by_group, axis=1, keepdims=True)
    return (by_group / jnp.where(total > 0, total, 1.0) / len(by_group)).reshape(weight.shape)


def clipped_losses(
    new: jax.Array, old: jax.Array, advantage: jax.Array, counted: jax.Array, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """−min(ratio A, clip(ratio) A) of each token (B, T), and where the clipping took its gradient, (B, T) bool.

    new, old: log-probabilities. advantage (B, 1). counted (B, T) bool: tokens that have a loss; others are 0.
    """
    # Tokens that are not counted are no tokens of the model: their difference may overflow, and 0 · ∞ would be NaN.
    ratio = jnp.exp(jnp.where(counted, new - old, 0.0))
    limited = jnp.clip(ratio, 1 - low, 1 + high)
    # The minimum keeps the gradient of a ratio that moved against its advantage: only progress is limited.
    is_clipped = counted & (limited * advantage < ratio * advantage)
    return jnp.where(counted, -jnp.minimum(ratio * advantage, limited * advantage), 0.0), is_clipped


def divergence(new: jax.Array, reference: jax.Array, counted: jax.Array) -> jax.Array:
    """An estimate of KL(new ‖ reference) from one token each, (B, T): r − 1 − log r for r = p_reference / p_new.

    It is never negative. Source: Schulman 2020, Approximating KL divergence.
    """
    log_ratio = jnp.where(counted, reference - new, 0.0)
    return jnp.exp(log_ratio) - 1 - log_ratio


def token_scores(
    params: Params, batch: Batch, config: AnyConfig, compute: Compute, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """(log p(target), entropy of the distribution in nats), each (B, T) float32, of the model at a temperature.

    batch: tokens, noisy and target (B, T); a decoder reads `noisy`, which is its text, at the position before the
    target, a diffusion model reads noisy blocks after clean ones (`tokens`).
    """

    def scores(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(logits / temperature)
        of_target = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        return of_target, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    if isinstance(config, DecoderConfig):
        backbone = model_backbone(config, compute)
        hidden = backbone.run(params, backbone.embed(params, batch["noisy"])).hidden
        return over_positions(lambda h, targets: scores(backbone.logits(params, h), targets), hidden, batch["target"])
    hidden = denoise(params, batch["tokens"], batch["noisy"], config=config, compute=compute, clean_context=True)

    def diffusion_scores(h: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = logit_features(params, h.reshape(-1, h.shape[-1]), config, compute)
        return scores(lm_logits(params, rows, compute).reshape(*targets.shape, -1), targets)

    return over_positions(diffusion_scores, hidden, batch["target"])


@partial(jax.jit, static_argnames="config")
def noisy_completions(key: jax.Array, tokens: jax.Array, weight: jax.Array, *, config: ModelConfig) -> Batch:
    """A draw of noise on the completions of a diffusion model: `noisy` (B, T) int32 and `weight` (B, T), 1/t at masked
    tokens and 0 at others.

    tokens (B, T), T a multiple of the block; weight (B, T): 1 at the tokens of completions, 0 at those of prompts,
    which are never masked.
    """
    level_key, mask_key = jax.random.split(key)
    B, T = tokens.shape
    W = config.diff_block_size
    levels = noise_levels(level_key, (B, T // W), jnp.zeros(()), NoiseConfig())
    noisy, masked = mask_tokens(mask_key, tokens, levels, config)
    masked &= weight > 0
    return {
        "noisy": jnp.where(masked, noisy, tokens),
        "weight": jnp.where(masked, 1 / jnp.repeat(levels, W, axis=1), 0.0),
    }

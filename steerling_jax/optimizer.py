"""AdamW with warm-up: the rates, which parameters decay, and the clip. Pure.

Decay is off for what is not a map between features: gains and biases (their scale is the point), and tables whose rows
are looked up (tokens, concepts, the coefficients of discovered concepts). A row that is rarely seen gets decay at every
step and a gradient almost never, so decay would wipe out exactly the rare words and the rare concepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from steerling_jax.errors import UserError

GAINS = frozenset({"ln_1", "ln_2", "ln_f", "q_norm", "k_norm"})
TABLES = frozenset({"tok_emb", "concept_embedding", "embedding_coef"})


@dataclass(frozen=True)
class OptimizerConfig:
    """peak_rate after `warmup_steps` of linear rise, then by `schedule` down to `final_fraction` of it.

    cosine: falls from the end of the warm-up. wsd: stays, and falls linearly over the last `decay_fraction` of the run.
    clip_norm: the largest global norm of a gradient.
    """

    peak_rate: float = 1e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_fraction: float = 0.2
    final_fraction: float = 0.0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        rules = (
            ("peak_rate", self.peak_rate > 0, "be positive"),
            ("warmup_steps", self.warmup_steps >= 0, "not be negative"),
            ("schedule", self.schedule in ("cosine", "wsd"), "be 'cosine' or 'wsd'"),
            ("decay_fraction", 0 <= self.decay_fraction <= 1, "be between 0 and 1"),
            ("final_fraction", 0 <= self.final_fraction <= 1, "be between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, "not be negative"),
            ("b1", 0 <= self.b1 < 1, "be at least 0 and below 1"),
            ("b2", 0 <= self.b2 < 1, "be at least 0 and below 1"),
            ("eps", self.eps > 0, "be positive"),
            ("clip_norm", self.clip_norm > 0, "be positive"),
        )
        for name, holds, demand in rules:
            if not holds:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}, but it must {demand}.")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update number (0 first) to rate, for a run of `steps` updates. The first update already moves."""
    warmup = min(config.warmup_steps, steps)
    tail = steps - warmup if config.schedule == "cosine" else min(round(config.decay_fraction * steps), steps - warmup)

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((count + 1) / max(warmup, 1), 1.0) if warmup else 1.0
        through = jnp.clip((count - (steps - tail)) / max(tail, 1), 0.0, 1.0)  # 0 to 1 over the falling tail
        fall = 0.5 * (1 + jnp.cos(jnp.pi * through)) if config.schedule == "cosine" else 1 - through
        return config.peak_rate * rise * (config.final_fraction + (1 - config.final_fraction) * fall)

    return rate


def decay_mask(params: Any) -> Any:
    """True where weight decay applies, for `params` as in docs/design.md: matrices between features."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [key.key for key in path]
        return names[-1] == "weight" and not (GAINS | TABLES) & set(names)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW at `learning_rate(config, steps)`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )

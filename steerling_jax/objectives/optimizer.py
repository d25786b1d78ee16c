"""AdamW, or Muon with AdamW: the rates, which parameters decay, and the clip. Pure.

Decay is off for what is not a map between features: gains and biases (their scale is the point), and tables whose rows
are looked up (tokens, concepts, the coefficients of discovered concepts). A row that is rarely seen gets decay at every
step and a gradient almost never, so decay would wipe out exactly the rare words and the rare concepts.

Muon (Jordan 2024) gives the momentum of a matrix singular values of one size before it is applied. It is for matrices
between features, whose every direction is in use at every step: those of the layers, and the factors of the discovered
head. Tables keep AdamW, also those of scores by concept or token: in a batch most of their rows have no gradient, and
equal singular values would blow up what noise there is. Its updates are scaled to the size of AdamW's
(Liu et al. 2025), so that rate and decay mean the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from steerling_jax.errors import UserError

GAINS = frozenset({"ln_1", "ln_2", "ln_f", "q_norm", "k_norm"})
TABLES = frozenset({"tok_emb", "concept_embedding", "embedding_coef"})
SCORES = frozenset({"lm_head", "concept_predictor", "predictor_up"})  # a row a token or a concept, but never looked up
MATRICES = frozenset({"weight", "lora_down", "lora_up"})
_ADAMW_RMS = 0.2  # root mean square of AdamW's updates, as Liu et al. measured it


@dataclass(frozen=True)
class OptimizerConfig:
    """peak_rate after `warmup_steps` of linear rise, then by `schedule` down to `final_fraction` of it.

    kind: of matrices between features; everything else is AdamW's. momentum: of Muon.
    schedule: cosine falls from the end of the warm-up; wsd stays, and falls linearly over the last `decay_fraction` of
    the run.
    clip_norm: the largest global norm of a gradient.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    peak_rate: float = 1e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_fraction: float = 0.2
    final_fraction: float = 0.0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        rules = (
            ("kind", self.kind in ("adamw", "muon"), "be 'adamw' or 'muon'"),
            ("peak_rate", self.peak_rate > 0, "be positive"),
            ("warmup_steps", self.warmup_steps >= 0, "not be negative"),
            ("schedule", self.schedule in ("cosine", "wsd"), "be 'cosine' or 'wsd'"),
            ("decay_fraction", 0 <= self.decay_fraction <= 1, "be between 0 and 1"),
            ("final_fraction", 0 <= self.final_fraction <= 1, "be between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, "not be negative"),
            ("b1", 0 <= self.b1 < 1, "be at least 0 and below 1"),
            ("b2", 0 <= self.b2 < 1, "be at least 0 and below 1"),
            ("eps", self.eps > 0, "be positive"),
            ("momentum", 0 <= self.momentum < 1, "be at least 0 and below 1"),
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
    return _by_path(params, lambda names: names[-1] in MATRICES and not (GAINS | TABLES) & set(names))


def muon_labels(params: Any) -> Any:
    """'muon' for matrices between features, 'adamw' for the rest."""
    others = GAINS | TABLES | SCORES
    return _by_path(params, lambda names: "muon" if names[-1] in MATRICES and not others & set(names) else "adamw")


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW at `learning_rate(config, steps)`, or Muon for its share."""
    rate = learning_rate(config, steps)
    update: optax.GradientTransformation = optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )
    if config.kind == "muon":
        muon = optax.chain(
            optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=_dimensions),
            optax.stateless_with_tree_map(_to_adamws_size),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        update = optax.partition({"muon": muon, "adamw": update}, muon_labels)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def like_parameters(opt_state: optax.OptState, params: Any, otherwise: Any) -> Any:
    """A tree like `opt_state`: what `params` has at a moment's parameter (its place on the mesh, say), `otherwise` at
    counters and the like."""
    by_path = {tuple(_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def one(path: tuple[Any, ...], _: Any) -> Any:
        return by_path.get(tuple(_names(path)), otherwise)

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _to_adamws_size(update: Any, _: Any) -> Any:
    return _ADAMW_RMS * math.sqrt(max(update.shape[-2:])) * update


def _dimensions(updates: Any) -> Any:
    """Stacked matrices (L, out, in) are L matrices."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2), updates)


def _by_path(params: Any, function: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_names(path)), params)


def _names(path: Sequence[Any]) -> list[str]:
    """The names in nested dicts that a path ends with."""
    names: list[str] = []
    for key in reversed(path):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        names.append(cast(str, key.key))
    return names[::-1]

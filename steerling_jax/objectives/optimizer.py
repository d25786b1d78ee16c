"""The optimizers: AdamW, or Muon for matrices with AdamW for the rest; learning rates, weight decay, gradient clipping.

Weight decay applies to matrices between features only. It is off for gains and biases, whose scale is what they
represent, and for tables whose rows are looked up (tokens, concepts, the coefficients of discovered concepts). A
rare row would get decay at every step but a gradient almost never, so decay would erase just the rare tokens and
concepts.

Muon (Jordan 2024) makes the singular values of a matrix's momentum equal before applying it. It is for matrices between
features, all of whose directions are used at every step: those of the layers, and the factors of the discovered head.
Tables keep AdamW, including those that score concepts, tokens or experts: most of their rows have no gradient in a
batch, and equal singular values would amplify the noise of these. Muon's updates are scaled to the size of AdamW's (Liu
et al. 2025), so that rate and decay mean the same for both.
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
from steerling_jax.models.steerling.dictionary import embedding_table, unit_rows, without_radial
from steerling_jax.objectives.parameter_average import average_parameters

DISCOVERED = "unknown_head"
HEADS = frozenset({"known_head", DISCOVERED})
# Names of modules in the parameters of Steerling models and, in the second lines, of decoders.
GAINS = frozenset({"ln_1", "ln_2", "ln_f", "q_norm", "k_norm"}) | {
    *("norm", "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
}
TABLES = frozenset({"tok_emb", "concept_embedding", "embedding_coef"}) | {"embed_tokens"}
# A row for each token, concept or expert, not looked up.
SCORES = frozenset({"lm_head", "concept_predictor", "predictor_up"}) | {"gate", "shared_expert_gate"}
FILTERS = frozenset({"conv1d"})  # a few taps for each channel: no map between features
MATRICES = frozenset({"weight", "lora_down", "lora_up"})
_ADAMW_RMS = 0.2  # root mean square of AdamW's updates, as measured by Liu et al.


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer.

    kind: the optimizer of matrices between features; all other parameters use AdamW.
    peak_rate: the learning rate after a linear rise of `warmup_steps`; final_fraction: the part of it that is left at
    the end of the run.
    schedule: 'cosine' falls from the end of the warm-up on; 'wsd' (warm-up, stable, decay) stays at the peak and falls
    linearly over the last `decay_fraction` of the run.
    b1, b2, eps: of AdamW; momentum: of Muon; weight_decay: of both, times the rate.
    clip_norm: the largest global norm of a gradient; larger ones are scaled down to it.
    average: the decay of an exponential moving average of the parameters (`parameter_average`); 0 for none. Evaluations
    and the export have the average in place of the parameters, while training goes on with these. An average costs as
    much memory as the parameters, and helps most where the rate does not fall to 0.
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
    average: float = 0.0

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
            ("average", 0 <= self.average < 1, "be at least 0 and below 1"),
        )
        for name, holds, demand in rules:
            if not holds:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}, but it must {demand}.")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by number of the update, counted from 0, for a run of `steps` updates; never 0 at the first."""
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
    """A tree like `params`, True for the parameters that weight decay applies to: matrices between features."""
    return _by_path(params, lambda names: names[-1] in MATRICES and not (GAINS | TABLES | FILTERS) & set(names))


def muon_labels(params: Any) -> Any:
    """A tree like `params`, 'muon' for matrices between features and 'adamw' for the rest."""
    others = GAINS | TABLES | SCORES | FILTERS
    return _by_path(params, lambda names: "muon" if names[-1] in MATRICES and not others & set(names) else "adamw")


def make_optimizer(
    config: OptimizerConfig, steps: int, *, dictionary: bool = False, heads_only: bool = False
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates: clipping by the global norm, then AdamW, or Muon with AdamW.

    dictionary: the discovered concepts are a dictionary, whose embeddings keep the length 1. heads_only: nothing but
    the concept heads changes; other parameters have no moments.
    """
    rate = learning_rate(config, steps)
    update: optax.GradientTransformation = optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )
    if config.kind == "muon":
        muon = optax.chain(
            optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=_dimensions),
            optax.stateless_with_tree_map(_scale_to_adamw),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        update = optax.partition({"muon": muon, "adamw": update}, muon_labels)
    update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    if heads_only:
        update = optax.partition({"heads": update, "rest": optax.set_to_zero()}, _head_labels)
    if dictionary:
        update = optax.chain(_tangential_gradient(), update, _unit_length())
    # The last of the chain, because it reads the parameters after the update.
    return optax.chain(update, average_parameters(config.average)) if config.average else update


def _head_labels(params: Any) -> Any:
    return _by_path(params, lambda names: "heads" if names[0] in HEADS else "rest")


def _tangential_gradient() -> optax.GradientTransformation:
    """Removes from the gradient what would only change the lengths of a dictionary's embeddings."""

    def update(updates: Any, params: Any) -> Any:
        return _replace_embeddings(updates, without_radial(params[DISCOVERED], _embeddings_of(params, updates)))

    return optax.stateless(update)


def _unit_length() -> optax.GradientTransformation:
    """Changes the update so that a dictionary's embeddings have the length 1 after it."""

    def update(updates: Any, params: Any) -> Any:
        moved: Any = optax.apply_updates(params[DISCOVERED], updates[DISCOVERED])
        return _replace_embeddings(updates, unit_rows(moved) - _embeddings_of(params, params))

    return optax.stateless(update)


def with_unit_embeddings(params: Any) -> Any:
    """The parameters with a dictionary's embeddings scaled to the length 1."""
    return _replace_embeddings(params, unit_rows(params[DISCOVERED]))


def _embeddings_of(params: Any, tree: Any) -> Any:
    return tree[DISCOVERED][embedding_table(params[DISCOVERED])]["weight"]


def _replace_embeddings(updates: Any, table: Any) -> Any:
    head = updates[DISCOVERED]
    return {**updates, DISCOVERED: {**head, embedding_table(head): {"weight": table}}}


def like_parameters(opt_state: optax.OptState, params: Any, otherwise: Any) -> Any:
    """A tree like `opt_state`, with the leaf of `params` in place of each moment of that parameter (its sharding, for
    example) and `otherwise` in place of counters and other scalars."""
    by_path = {tuple(_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def one(path: tuple[Any, ...], _: Any) -> Any:
        return by_path.get(tuple(_names(path)), otherwise)

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _scale_to_adamw(update: Any, _: Any) -> Any:
    # An orthogonal (m, n) matrix has the root mean square 1 / √max(m, n).
    return _ADAMW_RMS * math.sqrt(max(update.shape[-2:])) * update


def _dimensions(updates: Any) -> Any:
    """Muon treats a stacked weight (L, out, in) as L matrices, not as one."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2), updates)


def _by_path(params: Any, function: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_names(path)), params)


def _names(path: Sequence[Any]) -> list[str]:
    """The keys of nested dicts at the end of a tree path: optimizer states nest the parameters' tree in their own."""
    names: list[str] = []
    for key in reversed(path):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        names.append(cast(str, key.key))
    return names[::-1]

"""The whole model: parameters, and `forward`, which gives logits and the typed decomposition behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import Layers, embed_tokens, lm_logits, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import HeadClamps, Parts, decompose
from steerling_jax.models.steerling.head_view import ConceptHead, Table, discovered_spec, known_spec
from steerling_jax.models.steerling.heads import Clamps, EpsilonRule
from steerling_jax.models.steerling.layers import rope_tables


@struct.dataclass
class Decomposition:
    """The decomposition behind the logits, under the published output's names ("unknown" and "unk" mean discovered).

    hidden, known_features, known_predicted, unk, unk_hat, unk_for_lm, composed, epsilon, epsilon_true: (B, T, D). unk:
    hidden − known; unk_hat the discovered features; unk_for_lm what is added to the known features to give composed,
    which the output projection reads; epsilon the correction in it, epsilon_true what the features leave of hidden.
    *_topk_indices (B, T, K) int32 and *_topk_logits (B, T, K) float32, largest first. *_logits and *_weights (B, T, C)
    with `dense` only. Fields that the model does not have are None.
    """

    hidden: jax.Array
    known_features: jax.Array | None = None
    known_logits: jax.Array | None = None
    known_predicted: jax.Array | None = None
    known_weights: jax.Array | None = None
    known_topk_indices: jax.Array | None = None
    known_topk_logits: jax.Array | None = None
    unk: jax.Array | None = None
    unk_hat: jax.Array | None = None
    unk_for_lm: jax.Array | None = None
    unknown_logits: jax.Array | None = None
    unknown_weights: jax.Array | None = None
    unknown_topk_indices: jax.Array | None = None
    unknown_topk_logits: jax.Array | None = None
    composed: jax.Array | None = None
    epsilon: jax.Array | None = None
    epsilon_true: jax.Array | None = None


class ForwardResult(NamedTuple):
    """The logits (B, T, V) float32 and the decomposition behind them, of which models without concepts have `hidden`
    alone."""

    logits: jax.Array
    decomposition: Decomposition

    @property
    def hidden(self) -> jax.Array:
        """The hidden states (B, T, D) after the final norm."""
        return self.decomposition.hidden


_FLOAT32 = Compute()


def _no_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return q


class Steerling(nn.Module):
    """Declares every parameter under its published name, by running the modules that `run_backbone` runs.

    For initialisation only, where neither the tokens nor what each position sees matter: attention is left out.
    """

    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> None:
        c = self.config
        x = Table((c.vocab_size, c.n_embd), c.n_embd**-0.5, name="tok_emb")()[tokens]
        if not c.weight_sharing:
            Table((c.vocab_size, c.n_embd), c.n_embd**-0.5, name="lm_head")()
        rope = rope_tables(c, jnp.arange(tokens.shape[1])) if c.use_rope else None
        layers = Layers(c, self.compute)
        nn.share_scope(self, layers)  # so that the layers' path is blocks/…, not Layers_0/blocks/…
        hidden, _, _ = layers(x, rope, _no_attention)
        if c.concept is not None:
            rows = hidden.reshape(-1, c.n_embd)
            ConceptHead(known_spec(c.concept), self.compute, name="known_head")(rows)
            if (spec := discovered_spec(c.concept)) is not None:
                ConceptHead(spec, self.compute, name="unknown_head")(rows)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters: weights normal with variance 1 / fan-in, residual projections scaled down by √(2L)."""
    variables: Any = Steerling(config).init(key, jnp.zeros((1, config.diff_block_size), jnp.int32))
    return variables["params"]


def param_shapes(config: ModelConfig) -> Params:
    """The parameter tree as ShapeDtypeStructs, without building anything."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def forward(
    params: Params,
    tokens: jax.Array | None,
    *,
    config: ModelConfig,
    compute: Compute = _FLOAT32,
    embeds: jax.Array | None = None,
    dense: bool = False,
    known_clamps: Clamps | None = None,
    discovered_clamps: Clamps | None = None,
    epsilon: EpsilonRule = "published",
    edits: Sequence[LayerEdit] = (),
    large: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> ForwardResult:
    """The forward pass: tokens (B, T) int, or embeds (B, T, D), to logits (B, T, V) float32 and the decomposition.

    known_clamps, discovered_clamps: with positions (B·T,); epsilon: see `decompose`; dense, large: see
    `heads.run_head`. edits: changes to the layers' outputs, in their order.

    Source: the published package's InterpretableCausalDiffusionLM.forward.
    """
    if embeds is None:
        assert tokens is not None, "tokens or embeds"
        embeds = embed_tokens(params, tokens, compute)
    hidden = run_backbone(params, embeds, config=config, compute=compute, edits=edits).hidden
    if config.concept is None:
        return ForwardResult(lm_logits(params, hidden, compute), Decomposition(hidden=hidden))
    B, T, D = hidden.shape
    parts = decompose(
        params,
        hidden.reshape(-1, D),
        config=config,
        compute=compute,
        clamps=HeadClamps(known_clamps, discovered_clamps, epsilon),
        dense=dense,
        large=large,
        stop_discovered_gradient=True,
    )
    logits = lm_logits(params, parts.composed, compute).reshape(B, T, -1)
    fields = {name: None if value is None else value.reshape(B, T, -1) for name, value in _published(parts).items()}
    return ForwardResult(logits, Decomposition(**fields))  # type: ignore[arg-type]


def _published(parts: Parts) -> dict[str, jax.Array | None]:
    """The parts of hidden rows under their published names, as rows (B·T, …)."""
    known, discovered = parts.known, parts.discovered
    fields: dict[str, jax.Array | None] = dict(
        hidden=parts.hidden,
        known_features=known.features,
        known_predicted=known.features,
        known_logits=known.logits,
        known_weights=known.weights,
        known_topk_indices=known.topk_indices,
        known_topk_logits=known.topk_logits,
        unk=parts.hidden - known.features,
        unk_for_lm=parts.beside_known,
        composed=parts.composed,
        epsilon=parts.epsilon,
    )
    if discovered is not None:
        fields |= dict(
            unk_hat=discovered.features,
            unknown_logits=discovered.logits,
            unknown_weights=discovered.weights,
            unknown_topk_indices=discovered.topk_indices,
            unknown_topk_logits=discovered.topk_logits,
            epsilon_true=parts.residual,
        )
    return fields


# `forward`, compiled; JAX keeps one program for each configuration, set of options and shape.
compiled_forward = partial(jax.jit, static_argnames=("config", "compute", "dense", "epsilon", "large"))(forward)


@partial(jax.jit, static_argnames=("config", "compute"))
def compiled_hidden(
    params: Params,
    tokens: jax.Array,
    total: jax.typing.ArrayLike | None = None,
    *,
    config: ModelConfig,
    compute: Compute,
    edits: Sequence[LayerEdit] = (),
) -> jax.Array:
    """tokens (B, T) to hidden states (B, T, D), without the heads and the output projection.

    total: (), positions from there on are padding, which attention does not see; None where there is none.
    """
    x, attention = embed_tokens(params, tokens, compute), None
    if total is not None:
        at = jnp.arange(tokens.shape[1])
        attention = block_causal_mask(at, at, config.diff_block_size) & (at < total)[None, :]
    return run_backbone(params, x, config=config, compute=compute, attention=attention, edits=edits).hidden

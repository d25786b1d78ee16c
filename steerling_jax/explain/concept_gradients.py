"""Gradients of concepts with respect to injected concepts: how one concept acts on another through the layers.

For a target (concept j at position t) and a source (concept i), the gradient is the change of j's logit at t per unit
of E_i added to the hidden state after layer l at position s. By the chain rule it is the product of the gradient with
respect to the hidden state and E_i. One backward pass per target therefore gives it for all sources, layers and
positions, and only the requested concepts are computed, never a table of all pairs.

Legend: n targets, m sources, L layers, T positions, D width, B targets of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle, check_token_ids
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import check_concepts, concept_embeddings, head_spec, view_concepts
from steerling_jax.decoding.window import edits_of_canvases
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig


class TargetConcept(NamedTuple):
    """A concept at a position of the canvas, whose logit is differentiated."""

    concept_id: int
    position: int
    head: Head = "known"


class SourceConcept(NamedTuple):
    """A concept whose embedding is injected."""

    concept_id: int
    head: Head = "known"


@dataclass(frozen=True)
class ConceptGradients:
    """Gradients of n target concepts with respect to m injected source concepts.

    logits, activations, slopes (n,) float32: the targets' values without injection, and the derivatives of activations
    by logits.
    gradients (n, m, L, T) float32: the change of a target's logit per unit of a source's embedding that is added after
    layer l + 1 at a position. The model clips logits to ±15, so a logit at that limit has the gradient 0.
    """

    targets: tuple[TargetConcept, ...]
    sources: tuple[SourceConcept, ...]
    logits: np.ndarray
    activations: np.ndarray
    slopes: np.ndarray
    gradients: np.ndarray

    @property
    def of_activations(self) -> np.ndarray:
        """Gradients (n, m, L, T) of the targets' activations: those of the logits times the activations' slopes."""
        return self.gradients * self.slopes[:, None, None, None]

    def injected(self, layer: int, positions: np.ndarray) -> np.ndarray:
        """The change (n, m) of the logits per unit of a source that is injected as in steering.

        That is, after every layer from `layer` (counted from 1) on, at `positions` (T,) bool.
        """
        return self.gradients[:, :, max(layer, 1) - 1 :, positions].sum(axis=(2, 3))


def concept_gradients(
    bundle: Bundle,
    tokens: Any,
    targets: Sequence[TargetConcept],
    sources: Sequence[SourceConcept],
    *,
    injected: tuple[np.ndarray, np.ndarray] | None = None,
    prompt_length: int = 0,
    batch_size: int = 8,
) -> ConceptGradients:
    """Gradients of the `targets` with respect to the `sources` on one canvas.

    tokens (T,): a canvas with mask ids, as from `trace.snapshot(step)`. injected, prompt_length: for a steered canvas,
    the two tables (L, D) for masked positions and the prompt, as from `trace.injected(step, L, D)`, and the length of
    the prompt. batch_size: targets per backward pass. Raises `UserError` for concepts that the model does not have and
    positions outside the canvas.
    """
    config = bundle.config
    canvas = check_token_ids(tokens, config, "tokens")
    if canvas.shape[0] != 1:
        raise UserError(f"tokens has {canvas.shape[0]} rows; give one canvas.")
    T = canvas.shape[1]
    if not targets or not sources:
        raise UserError("Give at least one target and one source.")
    for concept in (*targets, *sources):
        check_concepts(config, concept.head, [concept.concept_id])
    if outside := [target.position for target in targets if not 0 <= target.position < T]:
        raise UserError(f"Position {outside[0]} is outside the text of {T} tokens.")
    # One of a few lengths, so that canvases of many lengths share a program; attention does not see the padding.
    length = padded_length(T, config)
    padded = np.pad(canvas[0], (0, length - T), constant_values=config.mask_token_id)
    visible = np.arange(length) < T
    no_injection = np.zeros((config.n_layers, config.n_embd), np.float32)
    at_masks, at_prompt = (no_injection, no_injection) if injected is None else injected
    steering = edits_of_canvases(padded[None], prompt_length, config.mask_token_id, at_masks[None], at_prompt[None])
    vectors = jnp.concatenate([_embedding(bundle, source) for source in sources])
    logits = np.zeros(len(targets), np.float32)
    gradients = np.zeros((len(targets), len(sources), config.n_layers, T), np.float32)
    heads: dict[Head, list[int]] = {"known": [], "discovered": []}
    for number, target in enumerate(targets):
        heads[target.head].append(number)
    for head, numbers in heads.items():
        for first in range(0, len(numbers), batch_size):
            rows = numbers[first : first + batch_size]
            filled = rows + rows[:1] * (batch_size - len(rows))
            ids, at = (np.asarray([targets[i][field] for i in filled], np.int32) for field in (0, 1))
            batch_logits, batch_gradients = _logits_and_gradients(
                bundle.params,
                padded,
                visible,
                ids,
                at,
                vectors,
                steering,
                head=head,
                config=config,
                compute=bundle.compute,
            )
            logits[rows] = np.asarray(batch_logits)[: len(rows)]
            gradients[rows] = np.asarray(batch_gradients)[: len(rows), :, :, :T]
    activations, slopes = np.zeros((2, len(targets)), np.float32)
    for head, numbers in heads.items():
        if numbers:
            weights = head_spec(config, head).weights
            values = jnp.asarray(logits[numbers])
            activations[numbers], slopes[numbers] = weights(values), jax.vmap(jax.grad(weights))(values)
    return ConceptGradients(tuple(targets), tuple(sources), logits, activations, slopes, gradients)


def _embedding(bundle: Bundle, source: SourceConcept) -> jax.Array:
    """The embedding (1, D) of a source."""
    ids = jnp.asarray([source.concept_id], jnp.int32)
    return concept_embeddings(bundle.params, ids, head=source.head, config=bundle.config, compute=bundle.compute)


@partial(jax.jit, static_argnames=("head", "config", "compute"))
def _logits_and_gradients(
    params: Params,
    canvas: jax.Array,
    visible: jax.Array,
    ids: jax.Array,
    positions: jax.Array,
    vectors: jax.Array,
    steering: Sequence[LayerEdit],
    *,
    head: Head,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """Logits (B,) of concepts ids (B,) at positions (B,) of canvas (T,), and gradients (B, m, L, T) for vectors (m, D).

    visible (T,) bool: False at padding.
    """
    B, T = len(ids), len(canvas)
    x = jnp.broadcast_to(embed_tokens(params, canvas, compute), (B, T, config.n_embd))
    at = jnp.arange(T)
    numbers = at // config.diff_block_size
    mask = (numbers[:, None] >= numbers[None, :]) & visible[None, :]

    def logits(pushes: jax.Array) -> tuple[jax.Array, jax.Array]:
        edits = (*steering, LayerEdit(push=pushes))
        hidden = run_backbone(params, x, config=config, compute=compute, attention=mask, edits=edits).hidden
        view, _ = view_concepts(params, hidden[jnp.arange(B), positions], head, config, compute)
        values = bn.logits_of(view, ids[:, None], compute.operands)[:, 0]
        return values.sum(), values

    # The gradient is taken with respect to zeros that are added after every layer, which is the gradient with respect
    # to the hidden states there without changing them. Rows of the batch are independent copies of the canvas, so the
    # gradient of the sum of the logits is that of each row's own logit.
    zeros = jnp.zeros((config.n_layers, B, T, config.n_embd), jnp.float32)
    gradients, values = jax.grad(logits, has_aux=True)(zeros)
    return values, jnp.einsum("lbtd,md->bmlt", gradients, vectors)

"""How one concept acts on another through the layers: the gradient of a head's logit to what is injected after a layer.

For a target (concept j at position t) and a source (concept i): by how much j's logit at t moves for a small multiple
of E_i added after layer l at position s. One backward pass a target gives it for all sources, layers and positions;
only the concepts asked for are touched, never a table of all pairs.

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
from steerling_jax.concepts.catalogue import Head
from steerling_jax.concepts.heads import check_concepts, concept_embeddings, view_concepts
from steerling_jax.decoding.window import steering_of_canvases
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig


class TargetConcept(NamedTuple):
    """A concept at a position of the canvas."""

    concept_id: int
    position: int
    head: Head = "known"


class SourceConcept(NamedTuple):
    """A concept whose embedding is injected."""

    concept_id: int
    head: Head = "known"


@dataclass(frozen=True)
class ConceptGradients:
    """logits (n,) and activations (n,) float32: of the targets as they are.
    gradients (n, m, L, T) float32: of a target's logit to the multiple of a source's embedding that is added after
    layer l + 1 at a position. A logit at its limit of ±15 has none.
    """

    targets: tuple[TargetConcept, ...]
    sources: tuple[SourceConcept, ...]
    logits: np.ndarray
    activations: np.ndarray
    gradients: np.ndarray

    @property
    def of_activations(self) -> np.ndarray:
        """(n, m, L, T): the same, of the targets' activations."""
        slope = self.activations * (1 - self.activations)
        return self.gradients * slope[:, None, None, None]

    def injected(self, layer: int, positions: np.ndarray) -> np.ndarray:
        """(n, m): the logits' response to a source injected after every layer numbered at least `layer`, at
        `positions` (T,) bool, as steering injects it."""
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
    """tokens (T,): a canvas with mask ids, as `trace.snapshot(step)` gives it.

    injected: of a steered canvas, two tables (L, D) for its masked positions and its prompt, as `trace.injected(step,
    L, D)` gives them, with the prompt_length. Raises `UserError` for concepts and positions that are not there.
    """
    config = bundle.config
    canvas = check_token_ids(tokens, config, "tokens")
    if canvas.shape[0] != 1:
        raise UserError(f"tokens has {canvas.shape[0]} rows; give one canvas at a time.")
    T = canvas.shape[1]
    if not targets or not sources:
        raise UserError("Name at least one target and one source: a concept acts on a concept.")
    for one in (*targets, *sources):
        check_concepts(config, one.head, [one.concept_id])
    if outside := [one.position for one in targets if not 0 <= one.position < T]:
        raise UserError(f"Position {outside[0]} is outside the text of {T} tokens.")
    length = padded_length(T, config)
    padded = np.pad(canvas[0], (0, length - T), constant_values=config.mask_token_id)
    visible = np.arange(length) < T
    none = np.zeros((config.n_layers, config.n_embd), np.float32)
    at_masks, at_prompt = (none, none) if injected is None else injected
    steering = steering_of_canvases(padded[None], prompt_length, config.mask_token_id, at_masks[None], at_prompt[None])
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
            found, slopes = _responses(
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
            logits[rows] = np.asarray(found)[: len(rows)]
            gradients[rows] = np.asarray(slopes)[: len(rows), :, :, :T]
    activations = np.asarray(jax.nn.sigmoid(logits))
    return ConceptGradients(tuple(targets), tuple(sources), logits, activations, gradients)


def _embedding(bundle: Bundle, source: SourceConcept) -> jax.Array:
    ids = jnp.asarray([source.concept_id], jnp.int32)
    return concept_embeddings(bundle.params, ids, head=source.head, config=bundle.config, compute=bundle.compute)


@partial(jax.jit, static_argnames=("head", "config", "compute"))
def _responses(
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

    visible (T,) bool: what is no padding.
    """
    B, T = len(ids), len(canvas)
    x = jnp.broadcast_to(embed_tokens(params, canvas, compute), (B, T, config.n_embd))
    at = jnp.arange(T)
    numbers = at // config.diff_block_size
    mask = (numbers[:, None] >= numbers[None, :]) & visible[None, :]

    def logits(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = run_backbone(
            params, x, config=config, compute=compute, attention=mask, edits=(*steering, LayerEdit(push=rows))
        ).hidden
        view, _ = view_concepts(params, hidden[jnp.arange(B), positions], head, config, compute)
        found = bn.logits_of(view, ids[:, None], compute.operands)[:, 0]
        return found.sum(), found  # a row of the batch depends on its own canvas only

    nothing = jnp.zeros((config.n_layers, B, T, config.n_embd), jnp.float32)
    slopes, found = jax.grad(logits, has_aux=True)(nothing)
    return found, jnp.einsum("lbtd,md->bmlt", slopes, vectors)

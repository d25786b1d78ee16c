"""Compiled programs over snapshots: values of targets, and gradients summed over the points of a path.

Every input is interpolated between mask embeddings and the embeddings of a snapshot, see `snapshots`. A target is
computed from the hidden row after the final norm; the concept heads do not run, except for a target that is a concept.
In a published model without the epsilon correction, lm_head is applied to the hidden row and not to the composed one,
as in the published package. A strict model goes through its heads, and so does text generated with clamped concepts,
with the clamps.

Legend: N cases of a call, S positions of a cut or padded canvas, M passes of a call, B rows of a pass, L layers, D
width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.decoding.window import edits_of_canvases
from steerling_jax.explain.inputs.targets import reads_selection
from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Params, PassResult
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.backbone import decoder_backbone
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features


class CaseTable(NamedTuple):
    """The N cases of one call.

    canvases (N, S), positions and tokens (N,) int32; target: a target with leaves (N,). Shared by all cases: mask id,
    prompt length, injection tables (1, L, D), guidance strength, the clamped concepts if the target reads logits, layer
    edits, and the baseline embedding (D,), None for that of the mask. The last is set for autoregressive models, which
    have no mask: their cases have no steering and no guidance, and a token is explained from the row of the position
    before it. total () int32: positions from there on are padding, which attention does not see; None where there is
    none, or where it is behind all that a causal model reads.
    """

    canvases: Any
    positions: Any
    tokens: Any
    target: Any
    mask_id: Any
    prompt: Any
    at_masks: Any
    at_prompt: Any
    guidance: Any
    clamps: RowClamps | None
    edits: tuple[LayerEdit, ...]
    baseline: Any
    total: Any = None


class _Paths(NamedTuple):
    """The paths of B cases: base + α · difference.

    base, difference (B, S, D) float32: baseline embeddings, and the snapshot's embeddings minus these. value: a
    function from embeddings (B, S, D) to the targets' values (B,).
    """

    base: jax.Array
    difference: jax.Array
    value: Any


def _paths(
    params: Params,
    cases: CaseTable,
    which: jax.Array,
    config: ModelConfig | DecoderConfig,
    compute: Compute,
    guided: bool,
) -> _Paths:
    """The paths of the cases with the indices `which` (B,)."""
    canvases, positions, tokens, target = jax.tree.map(lambda leaf: leaf[which], cases[:4])
    layer = getattr(target, "layer", None)
    capture = () if layer is None else (layer,)
    if not isinstance(config, ModelConfig):
        backbone = decoder_backbone(config, compute)
        full = backbone.embed(params, canvases).astype(jnp.float32)
        base = jnp.broadcast_to(cases.baseline, full.shape)
        generated = jnp.broadcast_to(jnp.arange(full.shape[1])[None, :] >= cases.prompt, canvases.shape)
        placed = place_edits(cases.edits, generated)

        def causal_value(x: jax.Array) -> jax.Array:
            hidden = _read(backbone.run(params, x.astype(compute.dtype), edits=placed, capture=capture), capture)
            rows = hidden[jnp.arange(len(which)), positions - 1].astype(jnp.float32)
            return target.value(params, rows, tokens, config, compute)

        return _Paths(base, full - base, causal_value)
    full = embed_tokens(params, canvases, compute).astype(jnp.float32)
    base = embed_tokens(params, jnp.full_like(canvases, cases.mask_id), compute).astype(jnp.float32)
    at = jnp.arange(full.shape[1])
    in_prompt = jnp.broadcast_to(at[None, :] < cases.prompt, canvases.shape)
    mask = None
    if cases.total is not None:
        mask = block_causal_mask(at, at, config.diff_block_size) & (at < cases.total)[None, :]

    def hidden_rows(x: jax.Array, canvases: jax.Array) -> jax.Array:
        edits = edits_of_canvases(canvases, cases.prompt, cases.mask_id, cases.at_masks, cases.at_prompt, cases.edits)
        result = run_backbone(
            params,
            x.astype(compute.dtype),
            config=config,
            compute=compute,
            attention=mask,
            edits=edits,
            capture=capture,
        )
        hidden = _read(result, capture)
        rows = hidden[jnp.arange(len(which)), positions]
        if cases.clamps is not None or reads_selection(target, config):
            rows = logit_features(params, rows, config, compute, cases.clamps, positions - cases.prompt)
        return rows.astype(jnp.float32)

    def value(x: jax.Array) -> jax.Array:
        rows = hidden_rows(x, canvases)
        if guided:
            # Logits are linear in the row, so combining the rows of the two branches combines their logits. In the
            # unconditional branch the prompt is masked whatever x has there, so it adds no gradient at the prompt.
            unprompted = jnp.where(in_prompt, cases.mask_id, canvases)
            unconditional = hidden_rows(jnp.where(in_prompt[:, :, None], base, x), unprompted)
            rows = unconditional + (cases.guidance + 1) * (rows - unconditional)
        return target.value(params, rows, tokens, config, compute)

    return _Paths(base, full - base, value)


def _read(result: PassResult, capture: tuple[int, ...]) -> jax.Array:
    """The states that a target reads: the output of the captured block, else those after the final norm."""
    return result.captured[capture[0]] if capture else result.hidden


@partial(jax.jit, static_argnames=("config", "compute", "guided", "kind"))
def summed_gradients(
    params: Params,
    cases: CaseTable,
    which: jax.Array,
    points: jax.Array,
    weights: jax.Array,
    count: jax.Array,
    *,
    config: ModelConfig | DecoderConfig,
    compute: Compute,
    guided: bool,
    kind: type,
) -> jax.Array:
    """Weighted sums of gradients (N, S) float32 over the rows `which`, `points`, `weights` (M, B) of `count` passes.

    `count` is a traced value and the loop holds one pass in memory, so one program serves any number of quadrature
    points with the same memory.
    kind: the target's class, a static argument so that each class has its own program. The pytree is not enough: JAX
    (0.10, 0.12) compares the structures of two dataclasses with the same fields as equal.
    """

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        path = _paths(params, cases, which[i], config, compute, guided)
        # A row of the batch depends on its own case only, so the gradient of the sum is each row's own gradient.
        gradient = jax.grad(lambda x: path.value(x).sum())(path.base + points[i][:, None, None] * path.difference)
        return total.at[which[i]].add(weights[i][:, None] * jnp.sum(path.difference * gradient, axis=-1))

    return jax.lax.fori_loop(0, count, add, jnp.zeros(cases.canvases.shape, jnp.float32))


@partial(jax.jit, static_argnames=("config", "compute", "guided", "kind"))
def path_values(
    params: Params,
    cases: CaseTable,
    which: jax.Array,
    keep: jax.Array,
    count: jax.Array,
    *,
    config: ModelConfig | DecoderConfig,
    compute: Compute,
    guided: bool,
    kind: type,
) -> jax.Array:
    """The targets' values (M, B) float32 of `count` passes over rows `which` (M, B) with `keep` (M, B, S)."""

    def evaluate(i: jax.Array, values: jax.Array) -> jax.Array:
        path = _paths(params, cases, which[i], config, compute, guided)
        return values.at[i].set(path.value(path.base + keep[i][:, :, None] * path.difference))

    return jax.lax.fori_loop(0, count, evaluate, jnp.zeros(which.shape, jnp.float32))

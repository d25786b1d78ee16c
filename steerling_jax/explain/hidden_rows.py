"""The hidden rows from which a trace's tokens were committed: recorded, or computed again.

Legend: n committed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.window import edits_of_canvases
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import compiled_hidden
from steerling_jax.progress import Progress, no_progress

_SNAPSHOTS = 8  # canvases per call


def hidden_rows(
    bundle: Bundle, trace: Trace, *, unconditional: bool = False, progress: Progress = no_progress
) -> np.ndarray:
    """Hidden rows (n, D) float32 that gave the committed tokens, recorded or computed again with steering and edits.

    Of a diffusion model they are the rows of the committed positions on the snapshots; of an autoregressive model, the
    rows of the positions before them. unconditional: those of guidance's branch without the prompt, which traces never
    record. progress: called with "hidden rows" before every pass of a diffusion model; it may cancel by raising.
    """
    if trace.hidden is not None and not unconditional:
        return np.asarray(trace.hidden, np.float32)
    if not isinstance(bundle.config, ModelConfig):
        positions = [position for _, position, *_ in trace.flat()]
        return np.asarray(text_hidden(bundle, trace)[np.asarray(positions, np.int32) - 1], np.float32)
    return _snapshot_rows(bundle, trace, unconditional, progress)


def text_hidden(bundle: Bundle, trace: Trace) -> jax.Array:
    """Hidden rows (S, D) of an autoregressive model's text of T <= S tokens, with the trace's edits: one pass computes
    those of all steps, since a row depends on the text up to it alone."""
    T = len(trace.tokens)
    tokens = np.zeros((1, padded_length(T, bundle.config)), np.int32)  # what is behind the text is not attended to
    tokens[0, :T] = trace.tokens
    generated = np.arange(tokens.shape[1])[None] >= trace.prompt_length
    edits = place_edits(trace.edits, jnp.asarray(generated))
    return _text_hidden(bundle.params, tokens, edits, backbone=bundle.backbone)[0]


@partial(jax.jit, static_argnames=("backbone",))
def _text_hidden(params: Params, tokens: jax.Array, edits: tuple[LayerEdit, ...], *, backbone: Backbone) -> jax.Array:
    return backbone.run(params, backbone.embed(params, tokens), edits=edits).hidden


def snapshot_rows(
    bundle: Bundle,
    trace: Trace,
    steps: Sequence[int],
    canvases: np.ndarray,
    positions: np.ndarray,
    *,
    unconditional: bool = False,
) -> jax.Array:
    """Hidden rows (S, W, D) of a diffusion model at positions (S, W) of the snapshots `canvases` (S, T) of steps, with
    what steered them.

    Canvases are padded to one of a few lengths, so that texts of many lengths share a program.
    unconditional: of guidance's branch, which sees masks in place of the prompt.
    """
    config, total = bundle.config, np.int32(canvases.shape[1])
    if bundle.compute.attention == "splash":  # the kernel takes no mask, which would hide the padding
        total = None
    else:
        pad = padded_length(canvases.shape[1], config) - canvases.shape[1]
        canvases = np.pad(canvases, ((0, 0), (0, pad)), constant_values=trace.mask_id)
    if unconditional:
        canvases = canvases.copy()
        canvases[:, : trace.prompt_length] = trace.mask_id
    tables = [trace.injected(step, config.n_layers, config.n_embd) for step in steps]
    at_masks, at_prompt = map(np.stack, zip(*tables, strict=True))
    return _rows_of_canvases(
        bundle.params,
        canvases,
        positions,
        total,
        np.int32(trace.prompt_length),
        np.int32(trace.mask_id),
        (at_masks, at_prompt),
        trace.edits,
        config=config,
        compute=bundle.compute,
    )


@partial(jax.jit, static_argnames=("config", "compute"))
def _rows_of_canvases(
    params: Params,
    canvases: jax.Array,
    positions: jax.Array,
    total: jax.Array | None,
    prompt: jax.Array,
    mask_id: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    edits: tuple[LayerEdit, ...],
    *,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """Hidden rows (S, W, D) at positions (S, W) of canvases (S, T); total: see `compiled_hidden`."""
    placed = edits_of_canvases(canvases, prompt, mask_id, *tables, edits)
    hidden = compiled_hidden(params, canvases, total, config=config, compute=compute, edits=placed)
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def _snapshot_rows(bundle: Bundle, trace: Trace, unconditional: bool, progress: Progress) -> np.ndarray:
    config, commits = bundle.config, list(trace.commits)
    rows: list[np.ndarray] = []
    for first in range(0, len(commits), _SNAPSHOTS):
        progress("hidden rows", first, len(commits))
        batch = commits[first : first + _SNAPSHOTS]
        steps = [c.step for c in batch] + [0] * (_SNAPSHOTS - len(batch))  # padding keeps one compiled shape
        canvases = np.stack([trace.snapshot(step) for step in steps])
        # A step commits at most the positions of a sampler block, so every call reads that many.
        positions = np.zeros((_SNAPSHOTS, config.diff_block_size), np.int32)
        for row, commit in enumerate(batch):
            positions[row, : len(commit.positions)] = commit.positions
        read = snapshot_rows(bundle, trace, steps, canvases, positions, unconditional=unconditional)
        rows += [np.asarray(own[: len(c.positions)], np.float32) for own, c in zip(np.asarray(read), batch)]
    return np.concatenate(rows) if rows else np.zeros((0, config.n_embd), np.float32)

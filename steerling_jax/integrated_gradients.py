"""Which input tokens made each committed token: integrated gradients on the canvas that generation saw.

For each committed token, the embeddings of its exact snapshot are reached from the mask embedding on a straight line,
and the gradient of its logit along the line is averaged. Positions still masked in the snapshot do not move, so they
get zero. The path is backbone → lm_head: with the epsilon correction on that is the model's logit, and without it the
published package takes the same path. Later attention blocks cannot be seen, so the canvas is cut after the target's.

Legend: n committed tokens, T canvas positions, D width, B targets explained at once, S cut length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.backbone import Params, embed_tokens, lm_head_weight, run_backbone
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.trace import Trace
from steerling_jax.window_pass import injected_on

if TYPE_CHECKING:
    from steerling_jax.api import Bundle

Rule = Literal["gauss-legendre", "right-riemann"]
Scope = Literal["prompt", "generated", "all"]


class InputScore(NamedTuple):
    """One input position's share, over all explained tokens."""

    input_position: int
    input_token_id: int
    score: float


@dataclass(frozen=True)
class InputAttribution:
    """What each position of the canvas added to each committed token's logit. NumPy arrays, in the trace's order.

    attributions (n, T) float32.
    target_positions, target_token_ids, target_orders (n,) int32: what is explained; orders count the commits from 0.
    target_logits (n,): as recorded.
    path_logits, baseline_logits (n,): of backbone → lm_head on the snapshot and on masks alone.
    completeness_error (n,): sum of the attributions − (path − baseline logit), which the exact integral would make 0.
    """

    trace: Trace
    attributions: np.ndarray
    target_positions: np.ndarray
    target_token_ids: np.ndarray
    target_orders: np.ndarray
    target_logits: np.ndarray
    path_logits: np.ndarray
    baseline_logits: np.ndarray
    completeness_error: np.ndarray

    def aggregate(
        self, scope: Scope = "prompt", *, signed: bool = True, start: int | None = None, end: int | None = None
    ) -> list[InputScore]:
        """Ranks the input positions of `scope` over all targets, or those at positions [start, end).

        Each target's row is divided by its absolute mass within the scope, so that all have one vote, and the rows are
        averaged: signed (ranked by net effect) or in absolute value. "all" is prompt and committed positions.
        """
        committed = dict(zip(self.target_positions.tolist(), self.target_token_ids.tolist(), strict=True))
        prompt = dict(enumerate(self.trace.prompt.tolist()))
        tokens = {"prompt": prompt, "generated": committed, "all": prompt | committed}[scope]
        where = np.asarray(sorted(tokens), int)
        chosen = self.target_positions >= (0 if start is None else start)
        chosen &= self.target_positions < (len(self.trace.tokens) if end is None else end)
        rows = self.attributions[chosen][:, where]
        if not rows.size:
            return []
        votes = rows / np.maximum(np.abs(rows).sum(axis=1, keepdims=True), 1e-8)
        scores = (votes if signed else np.abs(votes)).mean(axis=0)
        ranked = np.argsort(-scores, kind="stable")
        return [InputScore(int(where[i]), tokens[int(where[i])], float(scores[i])) for i in ranked]


def attribute_inputs(
    bundle: Bundle, trace: Trace, *, nodes: int = 8, rule: Rule = "gauss-legendre", batch_size: int = 8
) -> InputAttribution:
    """Integrated gradients of every committed token, with `nodes` forward and backward passes each.

    rule: Gauss–Legendre nodes need far fewer passes than the published right-Riemann sum.
    batch_size: targets explained at once, which sets the memory needed; the nodes do not.
    A steered text is explained with the same injection, a guided one by its guided logit. Raises `UserError` for bad
    values.
    """
    alphas, weights = (np.pad(a, (0, -nodes % 32)) for a in quadrature(nodes, rule))
    if trace.plan is not None and trace.plan.clamps is not None:
        raise UserError("Input attribution of text written with concepts clamped is not offered; inject them instead.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but it must be at least 1.")
    targets = [(order, *target) for order, commit in enumerate(trace.commits) for target in _targets(trace, commit)]
    n, T = len(targets), len(trace.tokens)
    attributions, ends = np.zeros((n, T), np.float32), np.zeros((n, 2), np.float32)
    snapshots = {commit.step: trace.snapshot(commit.step) for commit in trace.commits}
    for length, rows in _batches(targets, T, bundle.config.diff_block_size, batch_size):
        filled = rows + rows[:1] * (batch_size - len(rows))
        _, steps, positions, tokens, _ = map(np.asarray, zip(*(targets[i] for i in filled), strict=True))
        canvases = np.stack([snapshots[step][:length] for step in steps.tolist()])
        tables = [trace.injected(step, bundle.config.n_layers, bundle.config.n_embd) for step in steps.tolist()]
        at_masks, at_prompt = (np.stack(side) for side in zip(*tables, strict=True))
        task = _Task(
            canvases, positions, tokens, np.int32(trace.mask_id), np.int32(trace.prompt_length), at_masks, at_prompt,
            np.float32(trace.guidance),
        )  # fmt: skip
        found, logits = _integrate(
            bundle.params, task, alphas, weights, nodes, bundle.config, bundle.compute, trace.guidance > 0
        )
        attributions[rows, :length] = np.asarray(found)[: len(rows)]
        ends[rows] = np.asarray(logits)[: len(rows)]
    orders, _, positions, tokens, recorded = (np.asarray([t[i] for t in targets]) for i in range(5))
    return InputAttribution(
        trace, attributions, positions.astype(np.int32), tokens.astype(np.int32), orders.astype(np.int32),
        recorded.astype(np.float32), path_logits=ends[:, 1], baseline_logits=ends[:, 0],
        completeness_error=attributions.sum(axis=1) - (ends[:, 1] - ends[:, 0]),
    )  # fmt: skip


def quadrature(nodes: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights (nodes,) float32 of a rule on [0, 1]."""
    if nodes < 1:
        raise UserError(f"nodes is {nodes}, but it must be at least 1.")
    if rule == "right-riemann":
        return np.arange(1, nodes + 1, dtype=np.float32) / nodes, np.full(nodes, 1 / nodes, np.float32)
    if rule != "gauss-legendre":
        raise UserError(f"rule is {rule!r}, but it must be 'gauss-legendre' or 'right-riemann'.")
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return ((points + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


def _targets(trace: Trace, commit) -> Iterator[tuple[int, int, int, float]]:
    """(step, position, token id, target logit) of one commit."""
    rows = zip(commit.positions, commit.token_ids, commit.target_logits, strict=True)
    return ((commit.step, *row) for row in rows)


def _batches(targets: list, T: int, block: int, size: int) -> Iterator[tuple[int, list[int]]]:
    """Cut lengths with the numbers of the targets to explain there, at most `size` at a time.

    A target needs the canvas up to the end of its attention block. Lengths are rounded up to 1, 2, 3, 4, 6, 8, 12, …
    blocks, so that few programs are compiled; longer canvases give the same numbers.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, (_, _, position, _, _) in enumerate(targets):
        by_length[min(_round_up(position // block + 1) * block, T)].append(number)
    for length, numbers in sorted(by_length.items()):
        for first in range(0, len(numbers), size):
            yield length, numbers[first : first + size]


def _round_up(blocks: int) -> int:
    power = 1
    while 2 * power < blocks:
        power *= 2
    return next(n for n in (power, 3 * power // 2, 2 * power) if n >= blocks)


class _Task(NamedTuple):
    """Targets to explain together: canvases (B, S), positions and tokens (B,), steered by tables (B, L, D)."""

    canvases: Any
    positions: Any
    tokens: Any
    mask_id: Any
    prompt: Any
    at_masks: Any
    at_prompt: Any
    guidance: Any


@partial(jax.jit, static_argnums=(5, 6, 7))
def _integrate(
    params: Params, task: _Task, alphas: jax.Array, weights: jax.Array, nodes: jax.Array, config: ModelConfig,
    compute: Compute, guided: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """To attributions (B, S) and the logits at both ends (B, 2).

    The first `nodes` of alphas and weights count: one program serves any number, with one node in memory at a time.
    """
    B = task.canvases.shape[0]
    full = embed_tokens(params, task.canvases, compute).astype(jnp.float32)
    base = embed_tokens(params, jnp.full_like(task.canvases, task.mask_id), compute).astype(jnp.float32)
    way = full - base
    target = jnp.take(lm_head_weight(params), task.tokens, axis=0).astype(jnp.float32)
    in_prompt = jnp.broadcast_to(jnp.arange(way.shape[1])[None, :] < task.prompt, task.canvases.shape)
    unprompted = jnp.where(in_prompt, task.mask_id, task.canvases)

    def logits(alpha: jax.Array) -> jax.Array:
        return logits_at(base + alpha * way)

    def logits_at(x: jax.Array) -> jax.Array:
        cond = branch(x, task.canvases)
        if not guided:
            return cond
        uncond = branch(jnp.where(in_prompt[:, :, None], base, x), unprompted)
        return uncond + (task.guidance + 1) * (cond - uncond)

    def branch(x: jax.Array, canvases: jax.Array) -> jax.Array:
        injected = injected_on(canvases, task.prompt, task.mask_id, task.at_masks, task.at_prompt)
        hidden, _ = run_backbone(params, x.astype(compute.dtype), config=config, compute=compute, injection=injected)
        return jnp.sum(hidden[jnp.arange(B), task.positions].astype(jnp.float32) * target, axis=-1)

    def node(i: jax.Array, total: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: logits_at(x).sum())(base + alphas[i] * way)
        return total + weights[i] * gradient

    total = jax.lax.fori_loop(0, nodes, node, jnp.zeros_like(way))
    ends = jax.lax.map(logits, jnp.asarray([0.0, 1.0]))
    return jnp.sum(way * total, axis=-1), ends.T

"""Passes over the snapshots in which tokens were committed: targets and their gradients, between masks and snapshot.

A snapshot is taken apart on the straight line from mask embeddings (0) to its own embeddings (1), at every position or
at some. Positions still masked do not move. Later attention blocks cannot be seen, so the canvas is cut after the
target's. A target is read from the hidden row, so the concept heads do not run (of a head, one row for a concept); with
the epsilon correction off, lm_head reads the same row, as in the published package, and not the composed one. Text that
was written with concepts clamped is read through the heads, with the clamps.

Legend: n explained targets, T canvas positions, S cut length, N cases of a call, M passes of a call, B rows of a pass,
R patterns, L layers, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.window import injected_on
from steerling_jax.errors import require
from steerling_jax.explain.inputs.commits import Case, choose_cases
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT, AttributionTarget
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params, embed_tokens, run_backbone, unstack_layers
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features

_PASSES = 64  # most passes of one call of a program
_SHORTEST = 128  # a canvas is cut no shorter: another program would take longer to compile than it saves
_CASES = 4  # cases of a call for each row of a pass


class SnapshotPasses:
    """Runs cases through the model, `batch_size` rows a pass. Cases share a call where they share cut length, type of
    target and injection; the rows of its passes are filled with whatever is left to do for any of them."""

    def __init__(self, bundle: Bundle, trace: Trace, cases: Sequence[Case], batch_size: int):
        require(batch_size >= 1, f"batch_size is {batch_size}, but it must be at least 1.")
        self.bundle, self.trace, self.cases, self.rows = bundle, trace, cases, batch_size
        # Unstacked is a seventh faster on a CPU than slicing weights in each pass, but keeps what every layer computed.
        self.params = bundle.params if bundle.compute.remat else unstack_layers(bundle.params)
        steps = sorted({case.step for case in cases})
        self.snapshots = {step: trace.snapshot(step) for step in steps}
        self.tables = {step: trace.injected(step, bundle.config.n_layers, bundle.config.n_embd) for step in steps}
        regimes: list[tuple[np.ndarray, np.ndarray]] = []
        self.regime = {step: _number_of(self.tables[step], regimes) for step in steps}

    def gradients(self, numbers: np.ndarray, points: np.ndarray, weights: np.ndarray) -> Iterator[tuple[Any, Any]]:
        """Σ weight · (snapshot − mask embedding) · gradient at each of the `points` on the line, summed over the width:
        yields (some of the `numbers`, their (…, S) float32); positions from S on have none."""
        for some, table, static in self._calls(numbers):
            which = np.repeat(np.arange(len(some)), len(points))
            at, share = (np.tile(values, len(some)) for values in (points, weights))
            total = 0.0
            for count, (rows, alphas, shares) in self._packed(which, at, share):
                total += np.asarray(summed_gradients(self.params, table, rows, alphas, shares, count, **static))
            yield some, np.asarray(total)[: len(some)]

    def values(self, numbers: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """The targets with `keep` (n, R, T) of each position's way from mask to snapshot, (n, R) float32, n numbers."""
        found = np.zeros(keep.shape[:2], np.float32)
        place = {number: i for i, number in enumerate(numbers)}
        for some, table, static in self._calls(numbers):
            at = [place[number] for number in some]
            S, R = table.canvases.shape[1], keep.shape[1]
            which = np.repeat(np.arange(len(some)), R)
            values = [
                np.asarray(_values(self.params, table, rows, kept, count, **static)).reshape(-1)
                for count, (rows, kept) in self._packed(which, keep[at, :, :S].reshape(-1, S))
            ]
            found[at] = np.concatenate(values)[: len(which)].reshape(-1, R)
        require_finite(found)
        return found

    def _calls(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, CaseTable, dict[str, Any]]]:
        """Numbers of cases that share a call, with their table and the program's static arguments."""
        groups: dict[Any, list[int]] = defaultdict(list)
        T, config = len(self.trace.tokens), self.bundle.config
        for number in numbers:
            case = self.cases[number]
            length = min(padded_length(max(case.position + 1, _SHORTEST), config), T)
            groups[length, self.regime[case.step], type(case.target), jax.tree.structure(case.target)].append(number)
        N = _CASES * self.rows
        for (length, *_), group in groups.items():
            for first in range(0, len(group), N):
                some = group[first : first + N]
                target = self.cases[some[0]].target
                guided = self.trace.guidance > 0 and target.guided
                static = {"config": config, "compute": self.bundle.compute, "guided": guided, "kind": type(target)}
                yield np.asarray(some), self._table(some + some[:1] * (N - len(some)), length), static

    def _table(self, numbers: list[int], length: int) -> CaseTable:
        cases = [self.cases[number] for number in numbers]
        at_masks, at_prompt = (side[None] for side in self.tables[cases[0].step])
        return CaseTable(
            np.stack([self.snapshots[case.step][:length] for case in cases]),
            np.asarray([case.position for case in cases], np.int32),
            np.asarray([case.token for case in cases], np.int32),
            jax.tree.map(lambda *leaves: np.asarray(leaves, np.int32), *(case.target for case in cases)),
            np.int32(self.trace.mask_id),
            np.int32(self.trace.prompt_length),
            at_masks,
            at_prompt,
            np.float32(self.trace.guidance),
            self.trace.clamps if cases[0].target.guided else None,
        )

    def _packed(self, *items: np.ndarray) -> Iterator[tuple[np.int32, list[np.ndarray]]]:
        """Items (I, …), a call's worth at a time, as (M, B, …) of which the first `count` passes matter."""
        size = _PASSES * self.rows
        for first in range(0, len(items[0]), size):
            part = [item[first : first + size] for item in items]
            filled = [np.pad(p, ((0, size - len(p)),) + ((0, 0),) * (p.ndim - 1)) for p in part]
            shaped = [f.reshape(_PASSES, self.rows, *f.shape[1:]) for f in filled]
            yield np.int32(-(-len(part[0]) // self.rows)), shaped


def values_with_kept(
    bundle: Bundle,
    trace: Trace,
    keep: np.ndarray,
    *,
    target: AttributionTarget | Sequence[AttributionTarget] = TOKEN_LOGIT,
    span: tuple[int, int] | None = None,
    positions: Sequence[int] | None = None,
    sample: int | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """The targets of the n chosen commits with part of their snapshots taken away, (n, R) float32.

    keep (n, R, T): R patterns for each commit, of each position's share of the way from the mask embedding (0) to its
    own (1). What is injected stays where the snapshot had it. The rest as in `attribute_inputs`.
    """
    cases = choose_cases(bundle, trace, target, span, positions, sample)
    keep = np.asarray(keep, np.float32)
    wanted = (len(cases), len(trace.tokens))
    require(
        keep.ndim == 3 and (keep.shape[0], keep.shape[2]) == wanted,
        f"keep has the shape {keep.shape}; give ({wanted[0]}, patterns, {wanted[1]}).",
    )
    return SnapshotPasses(bundle, trace, cases, batch_size).values(np.arange(len(cases)), keep)


def require_finite(values: np.ndarray) -> None:
    """Raises `UserError` where the model's numbers are NaN or infinite."""
    require(
        bool(np.isfinite(values).all()),
        "The model's output at an explained token is not a finite number: its weights hold NaN or infinity, so load "
        "weights that do not.",
    )


def _number_of(tables: tuple[np.ndarray, np.ndarray], known: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """The number of equal tables in `known`, to which new ones are added."""
    for number, (at_masks, at_prompt) in enumerate(known):
        if np.array_equal(at_masks, tables[0]) and np.array_equal(at_prompt, tables[1]):
            return number
    known.append(tables)
    return len(known) - 1


class CaseTable(NamedTuple):
    """canvases (N, S), positions and tokens (N,), target with leaves (N,); for all of them mask id, prompt length,
    injection (1, L, D), guidance, and the concepts that were clamped, where the target is made of logits."""

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


class _Line(NamedTuple):
    """B cases on their lines: embeddings of masks and the way to the snapshot (B, S, D), and the target's value at
    embeddings (B, S, D), (B,)."""

    base: jax.Array
    way: jax.Array
    value: Any


def _lines(
    params: Params, cases: CaseTable, which: jax.Array, config: ModelConfig, compute: Compute, guided: bool
) -> _Line:
    """The cases numbered `which` (B,)."""
    canvases, positions, tokens, target = jax.tree.map(lambda leaf: leaf[which], cases[:4])
    full = embed_tokens(params, canvases, compute).astype(jnp.float32)
    base = embed_tokens(params, jnp.full_like(canvases, cases.mask_id), compute).astype(jnp.float32)
    in_prompt = jnp.broadcast_to(jnp.arange(full.shape[1])[None, :] < cases.prompt, canvases.shape)

    def row(x: jax.Array, canvases: jax.Array) -> jax.Array:
        injected = injected_on(canvases, cases.prompt, cases.mask_id, cases.at_masks, cases.at_prompt)
        hidden, _ = run_backbone(params, x.astype(compute.dtype), config=config, compute=compute, injection=injected)
        read = hidden[jnp.arange(len(which)), positions]
        if cases.clamps is not None:
            read = logit_features(params, read, config, compute, cases.clamps, positions - cases.prompt)
        return read.astype(jnp.float32)

    def value(x: jax.Array) -> jax.Array:
        read = row(x, canvases)
        if guided:  # logits are linear in the row, so guiding rows guides them
            unprompted = jnp.where(in_prompt, cases.mask_id, canvases)
            unconditional = row(jnp.where(in_prompt[:, :, None], base, x), unprompted)
            read = unconditional + (cases.guidance + 1) * (read - unconditional)
        return target.value(params, read, tokens, config, compute)

    return _Line(base, full - base, value)


@partial(jax.jit, static_argnames=("config", "compute", "guided", "kind"))
def summed_gradients(
    params: Params,
    cases: CaseTable,
    which: jax.Array,
    points: jax.Array,
    weights: jax.Array,
    count: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    guided: bool,
    kind: type,
) -> jax.Array:
    """(N, S) float32: `count` passes over rows which, points, weights (M, B). One pass is in memory at a time, and one
    program serves any number of points.

    kind: the target's class, which chooses the program. By itself the tree does not: to JAX (0.10, 0.12) trees of two
    dataclasses with like fields are equal.
    """

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        line = _lines(params, cases, which[i], config, compute, guided)
        gradient = jax.grad(lambda x: line.value(x).sum())(line.base + points[i][:, None, None] * line.way)
        return total.at[which[i]].add(weights[i][:, None] * jnp.sum(line.way * gradient, axis=-1))

    return jax.lax.fori_loop(0, count, add, jnp.zeros(cases.canvases.shape, jnp.float32))


@partial(jax.jit, static_argnames=("config", "compute", "guided", "kind"))
def _values(
    params: Params,
    cases: CaseTable,
    which: jax.Array,
    keep: jax.Array,
    count: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    guided: bool,
    kind: type,
) -> jax.Array:
    """(M, B) float32: the targets of `count` passes over rows which (M, B) with keep (M, B, S)."""

    def put(i: jax.Array, found: jax.Array) -> jax.Array:
        line = _lines(params, cases, which[i], config, compute, guided)
        return found.at[i].set(line.value(line.base + keep[i][:, :, None] * line.way))

    return jax.lax.fori_loop(0, count, put, jnp.zeros(which.shape, jnp.float32))

"""Passes over snapshots: values and gradients of targets on the path from mask embeddings to a snapshot's embeddings.

A snapshot is the canvas on which a token was committed. At each position an input is interpolated between the baseline,
the mask embedding (0), and the embedding of the snapshot's token (1); positions that are still masked do not change. An
autoregressive model has no mask: its baseline is the mean of all embeddings. This module groups the work into calls of
a few compiled programs (`snapshot_programs`).

Legend: n explained targets, T canvas positions, S positions of a cut or padded canvas, N cases of a call, M passes of a
call, B rows of a pass, R patterns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import require
from steerling_jax.explain.finite import require_finite
from steerling_jax.explain.inputs.commits import Case
from steerling_jax.explain.inputs.snapshot_programs import CaseTable, path_values, summed_gradients
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ModelConfig

_PASSES = 64  # the largest number of passes in one call of a program
# Canvases are not cut below this length, nor where a larger share of them would stay: compiling another program takes
# longer than so small a cut saves.
_SHORTEST, _LARGEST_SHARE = 64, 0.75
CASES = 4  # cases of a call per row of a pass


class SnapshotPasses:
    """Runs cases through the model, `batch_size` rows per pass.

    A case alone seldom fills a pass: it may need one value, or 8 gradients with a batch of 32. Cases with the same cut
    length, class of target and injection therefore share one call of a compiled program, and each row of a pass is one
    (case, point) pair of any of them.
    """

    def __init__(
        self, bundle: Bundle, trace: Trace, cases: Sequence[Case], batch_size: int, cases_per_row: int = CASES
    ):
        """cases_per_row: cases of a call per row of a pass. With 1 a call ends four times as early, for a caller who
        reports progress or may cancel, and a chunk of 33 tokens takes 5 % longer."""
        require(batch_size >= 1, f"batch_size is {batch_size}, but it must be at least 1.")
        self.bundle, self.trace, self.cases, self.rows = bundle, trace, cases, batch_size
        self.cases_per_call = cases_per_row * batch_size
        # A tuple of layers is a seventh faster on a CPU than slicing stacked weights in every pass, but the unrolled
        # loop keeps all layers' activations for the backward pass. Under rematerialisation layers stay stacked.
        diffusion = isinstance(bundle.config, ModelConfig)
        self.params = bundle.params if bundle.compute.remat or not diffusion else unstack_layers(bundle.params)
        # The splash kernel takes no mask, which hides the padding of a diffusion model's canvas.
        self.pads = not diffusion or bundle.compute.attention != "splash"
        steps = sorted({case.step for case in cases})
        self.snapshots = {step: trace.snapshot(step) for step in steps}
        self.baseline = None if diffusion else mean_embedding(bundle.params, backbone=bundle.backbone)
        self.tables = {step: trace.injected(step, bundle.config.n_layers, bundle.config.width) for step in steps}
        # Injection is one argument of a call, so only cases with equal tables can share it. Tables of most traces are
        # equal at every step; a steering rule that changes in time gives several groups.
        distinct: list[tuple[np.ndarray, np.ndarray]] = []
        self.injection_group = {step: _index_of(self.tables[step], distinct) for step in steps}

    def gradients(self, numbers: np.ndarray, points: np.ndarray, weights: np.ndarray) -> Iterator[tuple[Any, Any]]:
        """Sums over the quadrature points of weight · (snapshot − mask embedding) · gradient, summed over the width.

        Yields (part of `numbers`, their attributions (…, S) float32, S <= T). Positions from S on cannot be attended to
        and have the attribution 0.
        """
        T = len(self.trace.tokens)
        for group, table, static in self._calls(numbers):
            case_rows = np.repeat(np.arange(len(group)), len(points))
            row_points, row_weights = (np.tile(values, len(group)) for values in (points, weights))
            total = 0.0
            for count, arrays in self._packed(case_rows, row_points, row_weights):
                total += np.asarray(summed_gradients(self.params, table, *arrays, count, **static))
            yield group, np.asarray(total)[: len(group), :T]

    def values(self, numbers: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Values (n, R) float32 of the targets of n cases `numbers`, on R partial snapshots each.

        keep (n, R, T): the interpolation of each position, from 0 (mask embedding) to 1 (snapshot).
        """
        result = np.zeros(keep.shape[:2], np.float32)
        index = {number: i for i, number in enumerate(numbers)}
        for group, table, static in self._calls(numbers):
            at = [index[number] for number in group]
            S, R = table.canvases.shape[1], keep.shape[1]
            case_rows = np.repeat(np.arange(len(group)), R)
            kept = keep[at, :, :S]
            kept = np.pad(kept, ((0, 0), (0, 0), (0, S - kept.shape[2])))  # padding is the same whatever is kept
            values = [
                np.asarray(path_values(self.params, table, *arrays, count, **static)).reshape(-1)
                for count, arrays in self._packed(case_rows, kept.reshape(-1, S))
            ]
            result[at] = np.concatenate(values)[: len(case_rows)].reshape(-1, R)
        require_finite(result)
        return result

    def _calls(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, CaseTable, dict[str, Any]]]:
        """Numbers of cases that share a call, with their table and the program's static arguments."""
        groups: dict[Any, list[int]] = defaultdict(list)
        T, config = len(self.trace.tokens), self.bundle.config
        # Texts of many lengths share programs too: a canvas that is not cut is padded.
        whole = padded_length(T, config) if self.pads else T
        for number in numbers:
            case = self.cases[number]
            # Attention is causal over diffusion blocks: what follows the target's block cannot affect the target. The
            # canvas is cut there, which saves most of the work for early positions. Lengths are rounded up to whole
            # blocks of a few sizes, so that a trace needs few compiled programs.
            length = padded_length(max(case.position + 1, _SHORTEST), config)
            length = length if length <= _LARGEST_SHARE * whole else whole
            structure = jax.tree.structure(case.target)
            groups[length, self.injection_group[case.step], type(case.target), structure].append(number)
        N = self.cases_per_call
        for (length, *_), members in groups.items():
            for first in range(0, len(members), N):
                group = members[first : first + N]
                target = self.cases[group[0]].target
                guided = self.trace.guidance > 0 and target.guided
                static = {"config": config, "compute": self.bundle.compute, "guided": guided, "kind": type(target)}
                # The table always has N cases (the first one repeated), so its shape does not start a compilation.
                yield np.asarray(group), self._table(group + group[:1] * (N - len(group)), length), static

    def _table(self, numbers: list[int], length: int) -> CaseTable:
        """The arguments of a call for these cases; all of them have the injection of the first one."""
        cases = [self.cases[number] for number in numbers]
        at_masks, at_prompt = (side[None] for side in self.tables[cases[0].step])
        T = len(self.trace.tokens)
        canvases = np.stack([self.snapshots[case.step][:length] for case in cases])
        canvases = np.pad(canvases, ((0, 0), (0, max(length - T, 0))), constant_values=self.trace.mask_id)
        if self.baseline is not None:
            canvases = np.maximum(canvases, 0)  # what is not written yet: later positions, which nothing reads
        return CaseTable(
            canvases,
            np.asarray([case.position for case in cases], np.int32),
            np.asarray([case.token for case in cases], np.int32),
            jax.tree.map(lambda *leaves: _stacked(leaves), *(case.target for case in cases)),
            np.int32(self.trace.mask_id),
            np.int32(self.trace.prompt_length),
            at_masks,
            at_prompt,
            np.float32(self.trace.guidance),
            self.trace.clamps if cases[0].target.guided else None,
            self.trace.edits,
            self.baseline,
            np.int32(T) if self.pads and self.baseline is None else None,
        )

    def _packed(self, *items: np.ndarray) -> Iterator[tuple[np.int32, list[np.ndarray]]]:
        """Arrays (I, …) with a row per (case, point) pair, one call at a time, as (M, B, …) with the number of passes.

        Every call has M · B rows, filled up with zeros; the program runs only the first `count` passes. Padding rows in
        the last of them refer to case 0 with weight 0 (gradients) or are dropped (values).
        """
        size = _PASSES * self.rows
        for first in range(0, len(items[0]), size):
            part = [item[first : first + size] for item in items]
            filled = [np.pad(p, ((0, size - len(p)),) + ((0, 0),) * (p.ndim - 1)) for p in part]
            shaped = [f.reshape(_PASSES, self.rows, *f.shape[1:]) for f in filled]
            yield np.int32(-(-len(part[0]) // self.rows)), shaped


@partial(jax.jit, static_argnames=("backbone",))
def mean_embedding(params: Params, *, backbone: Backbone) -> jax.Array:
    """The mean of all tokens' embeddings, (D,) float32: the baseline of models without a mask."""
    ids = jnp.arange(backbone.vocab_size, dtype=jnp.int32)
    return jnp.mean(backbone.embed(params, ids[None]).astype(jnp.float32), axis=(0, 1))


def _stacked(leaves: Sequence[Any]) -> np.ndarray:
    """The same leaf of all targets, an id or float32 numbers, one after the other."""
    array = np.asarray(leaves)
    return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32)


def _index_of(tables: tuple[np.ndarray, np.ndarray], distinct: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """The index of equal tables in `distinct`, to which new tables are appended."""
    for index, (at_masks, at_prompt) in enumerate(distinct):
        if np.array_equal(at_masks, tables[0]) and np.array_equal(at_prompt, tables[1]):
            return index
    distinct.append(tables)
    return len(distinct) - 1

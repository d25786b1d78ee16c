"""Values of attribution targets on partial snapshots, in which some tokens are replaced by the mask embedding.

Measures of faithfulness use them: deletion and insertion curves, Shapley values.

Legend: n explained targets, R patterns, T canvas positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import require
from steerling_jax.explain.inputs.commits import choose_cases
from steerling_jax.explain.inputs.snapshots import SnapshotPasses
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT, AttributionTarget


def perturbed_values(
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
    """Values (n, R) float32 of the targets of the n selected commits, on R partial snapshots each.

    keep (n, R, T): for each pattern and position, the interpolation from the mask embedding (0) to the snapshot's
    embedding (1). Injection stays at the positions where the snapshot had it. The other arguments are those of
    `attribute_inputs`. Raises `UserError` for a `keep` of another shape and where `attribute_inputs` does.
    """
    cases = choose_cases(bundle, trace, target, span, positions, sample)
    keep = np.asarray(keep, np.float32)
    n, T = len(cases), len(trace.tokens)
    require(
        keep.ndim == 3 and (keep.shape[0], keep.shape[2]) == (n, T),
        f"keep has the shape {keep.shape}; give ({n}, patterns, {T}).",
    )
    return SnapshotPasses(bundle, trace, cases, batch_size).values(np.arange(n), keep)

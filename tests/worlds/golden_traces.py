"""The traces behind the golden attributions, for the model families that have one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from steerling_jax.decoding.trace import Commit, Trace

FAMILIES = ("base", "instruct", "known_only")


def golden_trace(case: Mapping[str, np.ndarray], mask_id: int) -> Trace:
    """The trace of a golden `attribution.npz`."""
    orders, positions, tokens = (case[f"input.target_{name}"] for name in ("orders", "positions", "token_ids"))
    commits = [
        Commit(
            int(order),
            tuple(positions[orders == order].tolist()),
            tuple(tokens[orders == order].tolist()),
            tuple(case["concept.target_logits"][0, positions[orders == order]].tolist()),
        )
        for order in np.unique(orders)
    ]
    return Trace(case["prompt"].astype(np.int32), case["tokens"].astype(np.int32), tuple(commits), mask_id)

"""The raw logits of a trace's committed tokens, computed again from the states in which they were committed.

Legend: n committed tokens, N rows of a call, D width.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.contributions import over_rows
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.explain.logit_shares import composed_rows
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.steerling.config import ModelConfig


def committed_logits(bundle: Bundle, trace: Trace) -> np.ndarray:
    """The logits (n,) float32 of the committed tokens, with the trace's steering, edits and guidance; before
    suppression.

    From recorded hidden rows, or else from those of the snapshots.
    """
    logits = _of_rows(bundle, trace, hidden_rows(bundle, trace))
    if trace.guidance > 0:
        bare = _of_rows(bundle, trace, hidden_rows(bundle, trace, unconditional=True))
        logits = bare + np.float32(trace.guidance + 1) * (logits - bare)
    return logits


def _of_rows(bundle: Bundle, trace: Trace, hidden: np.ndarray) -> np.ndarray:
    """Logits (n,) of the committed tokens for hidden rows (n, D)."""
    tokens = np.asarray([token for _, _, token, _ in trace.flat()], np.int32)
    offsets = np.asarray([position - trace.prompt_length for _, position, _, _ in trace.flat()], np.int32)

    def logits(rows: np.ndarray, tokens: np.ndarray, offsets: np.ndarray) -> jax.Array:
        read = jnp.asarray(rows)  # what the output projection reads
        if isinstance(bundle.config, ModelConfig):
            read = composed_rows(bundle.params, read, offsets, trace.clamps, bundle.config, bundle.compute)
        return _token_logits(bundle.params, read.astype(bundle.compute.dtype), tokens, backbone=bundle.backbone)

    return over_rows(logits, hidden, tokens, offsets)[0]


@partial(jax.jit, static_argnames=("backbone",))
def _token_logits(params: Params, rows: jax.Array, tokens: jax.Array, *, backbone: Backbone) -> jax.Array:
    """The logits (N,) of tokens (N,), for rows (N, D) as the output projection reads them."""
    return jnp.take_along_axis(backbone.logits(params, rows), tokens[:, None], axis=1)[:, 0]

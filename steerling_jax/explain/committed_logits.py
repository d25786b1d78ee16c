"""The raw logits of a trace's committed tokens, computed again from the canvases in which they were committed.

Legend: n committed tokens, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.contributions import hidden_rows
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features

_ROWS = 64  # positions per call, which has logits (_ROWS, V) in memory


def committed_logits(bundle: Bundle, trace: Trace) -> np.ndarray:
    """The logits (n,) float32 of the committed tokens, with the trace's steering and guidance; before suppression.

    From recorded hidden rows, or else from those of the snapshots.
    """
    tokens = np.asarray([token for _, _, token, _ in trace.flat()], np.int32)
    offsets = np.asarray([position - trace.prompt_length for _, position, _, _ in trace.flat()], np.int32)
    logits = _of_rows(bundle, hidden_rows(bundle, trace), tokens, offsets, trace.clamps)
    if trace.guidance > 0:
        bare = _of_rows(bundle, hidden_rows(bundle, trace, unconditional=True), tokens, offsets, trace.clamps)
        logits = bare + np.float32(trace.guidance + 1) * (logits - bare)
    return logits


def _of_rows(
    bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, clamps: RowClamps | None
) -> np.ndarray:
    """Logits (n,) of tokens (n,) for hidden rows (n, D) at offsets (n,) after the prompt."""
    batches = []
    for first in range(0, len(tokens), _ROWS):
        part = tokens[first : first + _ROWS]
        pad = _ROWS - len(part)
        logits = _token_logits(
            bundle.params,
            np.pad(hidden[first : first + _ROWS], ((0, pad), (0, 0))),
            np.pad(part, (0, pad)),
            np.pad(offsets[first : first + _ROWS], (0, pad)),
            clamps,
            config=bundle.config,
            compute=bundle.compute,
        )
        batches.append(np.asarray(logits)[: len(part)])
    return np.concatenate(batches) if batches else np.zeros(0, np.float32)


@partial(jax.jit, static_argnames=("config", "compute"))
def _token_logits(
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    offsets: jax.Array,
    clamps: RowClamps | None,
    *,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    features = logit_features(params, hidden.astype(compute.dtype), config, compute, clamps, offsets)
    logits = lm_logits(params, features, compute).astype(jnp.float32)
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]

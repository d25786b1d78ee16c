"""What the jobs of the explorer compute, and how it becomes JSON.

Legend: T canvas positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerling_jax.attribution.trace.document import rounded, strongest
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.trace.parts import complete_document
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.trace_record import TraceRecord
from steerling_jax.evaluation.likelihood import log_likelihood
from steerling_jax.evaluation.text_metrics import repeated
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress

CONCEPTS = 8  # listed for each kind, token and chunk
_MASKINGS = 16  # of a cost: a bound within about 0.1 nats a token, in a fraction of a second


@dataclass(frozen=True)
class TokenInputs:
    """The inputs of one token: attributions (T,) float32, the logit on its snapshot and on masks alone, the
    completeness error, the number of gradients, and whether the error is within the tolerance."""

    attributions: np.ndarray
    value: float
    baseline: float
    completeness_error: float
    nodes: int
    converged: bool


def text_document(
    bundle: Bundle, autoencoders: Sequence[Autoencoder], record: TraceRecord, progress: Progress
) -> dict[str, Any]:
    """The explanation document of a text without inputs and training data, which are computed when they are looked
    at."""
    progress("concepts", 0, 1)
    explanation = explain(bundle, record, inputs=False, autoencoders=autoencoders, progress=progress)
    return complete_document(bundle, explanation, CONCEPTS, steps=False)


def token_inputs(bundle: Bundle, trace: Trace, positions: Sequence[int], progress: Progress) -> list[TokenInputs]:
    """The inputs of the tokens at these positions, to the tolerance."""
    found = attribute_inputs(bundle, trace, positions=list(positions), progress=progress)
    columns = (
        found.path_logits,
        found.baseline_logits,
        found.completeness_error,
        found.nodes,
        found.converged,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [TokenInputs(row, *values) for row, values in zip(found.attributions, rows, strict=True)]


def inputs_panel(at: tuple[int, int], rows: Sequence[TokenInputs]) -> dict[str, Any]:
    """The sum over the tokens of a selection, each explained on its own snapshot."""
    return {
        "at": list(at),
        **strongest(np.sum([row.attributions for row in rows], axis=0)),
        "value": rounded(sum(row.value for row in rows)),
        "baseline": rounded(sum(row.baseline for row in rows)),
        "completeness_error": rounded(sum(row.completeness_error for row in rows)),
        "nodes": max(row.nodes for row in rows),
        "unconverged": sum(not row.converged for row in rows),
        "method": "integrated-gradients",
        "tokens": len(rows),
    }


def cost_panel(bundle: Bundle, record: TraceRecord, progress: Progress) -> dict[str, Any]:
    """What a text costs the model, in nats a token (an upper bound for a diffusion model), and how much it repeats."""
    progress("cost", 0, 1)
    trace = record.trace
    after = trace.tokens[trace.prompt_length :]
    ids = after[after != trace.mask_id].tolist()
    score = log_likelihood(bundle, trace.prompt.tolist(), ids, samples=_MASKINGS)
    return {
        "nats_per_token": rounded(-float(score) / len(ids)),
        "maskings": _MASKINGS if isinstance(bundle.config, ModelConfig) else 0,
        "repeated_3_grams": repeated(ids, 3),
        "tokens": len(ids),
    }

"""The hidden state split into known concepts, discovered concepts and the residual, and what the logits read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import known_spec, unknown_spec
from steerling_jax.models.steerling.heads import Clamps, EpsilonRule, HeadOutput, run_head
from steerling_jax.parallel.mesh import constrain


@struct.dataclass
class RowClamps:
    """Concepts set by hand while text is written: known and unknown as (ids (J,), values (J,)), None for no clamp; at
    offsets after the prompt from `start` up to `end`, () int32; epsilon: see `forward`."""

    known: tuple[jax.Array, jax.Array] | None
    unknown: tuple[jax.Array, jax.Array] | None
    start: jax.Array
    end: jax.Array
    epsilon: EpsilonRule = struct.field(pytree_node=False, default="published")

    def at(self, which: tuple[jax.Array, jax.Array] | None, offsets: jax.Array) -> Clamps | None:
        """One head's clamps on rows at `offsets` (N,)."""
        return None if which is None else Clamps(*which, (offsets >= self.start) & (offsets < self.end))


def logit_features(
    params: Params,
    hidden: jax.Array,
    config: ModelConfig,
    compute: Compute,
    clamps: RowClamps | None = None,
    offsets: jax.Array | None = None,
) -> jax.Array:
    """Hidden rows (N, D) to the rows (N, D) that the output projection reads, with `clamps` on rows at `offsets` (N,).

    Unclamped, with the epsilon correction on, they are the hidden rows themselves, up to rounding, and the heads are
    skipped (not under faithful rounding).
    """
    concept = config.concept
    if concept is None or (clamps is None and concept.use_epsilon_correction and not compute.faithful_rounding):
        return hidden
    known_clamps = unknown_clamps = None
    rule: EpsilonRule = "published"
    if clamps is not None:
        assert offsets is not None
        known_clamps, unknown_clamps = clamps.at(clamps.known, offsets), clamps.at(clamps.unknown, offsets)
        rule = clamps.epsilon
    known = run_head(params["known_head"], hidden, known_spec(concept), compute, known_clamps, rule)
    spec = unknown_spec(concept)
    unknown = None
    if spec is not None:
        unknown = run_head(params["unknown_head"], hidden, spec, compute, unknown_clamps, rule)
    use_epsilon, clamped = concept.use_epsilon_correction, known_clamps is not None
    return compose(hidden, known, unknown, use_epsilon=use_epsilon, rule=rule, known_clamped=clamped)[0]


def compose(
    hidden: jax.Array,
    known: HeadOutput,
    unknown: HeadOutput | None,
    *,
    use_epsilon: bool,
    rule: EpsilonRule,
    known_clamped: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Puts the parts together, all (N, D): composed, the discovered part as it goes to the logits, epsilon or None.

    Published: epsilon fills what is missing unless a known concept is clamped. Frozen: epsilon (and, without a
    discovered head, the stand-in for its features) is that of the unedited pass, so an edit moves `composed` by
    exactly its delta.
    """
    if unknown is None:
        reference = known.plain if rule == "frozen" else known.features
        part, plain_part = (hidden - reference,) * 2
    else:
        part, plain_part = unknown.features, unknown.plain
    epsilon = None
    if use_epsilon and rule == "frozen":
        epsilon = hidden - (plain_part + known.plain)
    elif use_epsilon and not known_clamped:
        epsilon = hidden - (part + known.features)
    if epsilon is not None:
        part = part + epsilon
    return part + known.features, part, epsilon


def lm_logits(params: Params, features: jax.Array, compute: Compute) -> jax.Array:
    """features (..., D) to logits (..., V) float32; rounded to the compute dtype first under faithful rounding."""
    weight = lm_head_weight(params)
    # First as it lies, or the compiler would lay a tied embedding out for this product, and gather it for every other;
    # then a device's own part of the vocabulary; then all of that part.
    for axes in (("vocab", "embed"), ("logits", "embed"), ("logits", None)):
        weight = constrain(weight, axes)
    logits = matmul_t(features, weight, compute.operands)
    logits = constrain(logits, ("batch", *(None,) * (logits.ndim - 2), "logits"))
    return logits.astype(compute.dtype).astype(jnp.float32) if compute.faithful_rounding else logits

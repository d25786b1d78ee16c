"""The decomposition `hidden = known + discovered + epsilon`, and the cross-entropy of logits that read its sum.

In a model whose discovered concepts are a dictionary, the sum may also have an offset, the same at all positions. With
`use_epsilon_correction` off such a model is strict: `composed = known + discovered + offset`, and nothing else of the
hidden state reaches the logits.

The forward pass, decoding, training, evaluation and explanations all call `decompose`; what needs a single head calls
`heads.run_known_head` or `heads.run_discovered_head`.

Legend: N rows (positions of any number of sequences), D width, C concepts, J clamped concepts, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from flax import struct
from jax import lax

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.heads import Clamps, EpsilonRule, HeadOutput, run_discovered_head, run_known_head


class HeadClamps(NamedTuple):
    """The clamps of both heads (None for none), and the rule for epsilon under them: see `decompose`."""

    known: Clamps | None = None
    discovered: Clamps | None = None
    epsilon: EpsilonRule = "published"


NO_CLAMPS = HeadClamps()


@struct.dataclass
class RowClamps:
    """Concepts clamped during decoding: known and discovered as (ids (J,), values (J,)), None for no clamp, at offsets
    after the prompt from `start` up to `end`, () int32; epsilon: see `decompose`."""

    known: tuple[jax.Array, jax.Array] | None
    discovered: tuple[jax.Array, jax.Array] | None
    start: jax.Array
    end: jax.Array
    epsilon: EpsilonRule = struct.field(pytree_node=False, default="published")

    def at(self, offsets: jax.Array) -> HeadClamps:
        """The clamps on rows at `offsets` (N,) after the prompt."""
        positions = (offsets >= self.start) & (offsets < self.end)
        known, discovered = (
            None if clamped is None else Clamps(*clamped, positions) for clamped in (self.known, self.discovered)
        )
        return HeadClamps(known, discovered, self.epsilon)


class Parts(NamedTuple):
    """Hidden rows and their decomposition; arrays are (N, D).

    known, discovered: the outputs of the heads; discovered is None in a model without that head.
    offset: a dictionary's constant vector (1, D); None in a model without one.
    epsilon: the correction that is added to the heads' features; None where none is added.
    beside_known: what is added to the known features to give `composed`; the published `unk_for_lm`.
    composed: what the output projection reads.
    """

    hidden: jax.Array
    known: HeadOutput
    discovered: HeadOutput | None
    offset: jax.Array | None
    epsilon: jax.Array | None
    beside_known: jax.Array
    composed: jax.Array

    @property
    def discovered_features(self) -> jax.Array:
        """The discovered head's features; in a model without that head, all that is not known (published)."""
        return self.hidden - self.known.features if self.discovered is None else self.discovered.features

    @property
    def concept_features(self) -> jax.Array:
        """The features of the model's heads and the offset added up, without epsilon."""
        if self.discovered is None:
            return self.known.features
        features = self.known.features + self.discovered.features
        return features if self.offset is None else features + self.offset

    @property
    def residual(self) -> jax.Array:
        """What the known and discovered features and the offset leave of the hidden rows."""
        rest = self.hidden - (self.known.features + self.discovered_features)
        return rest if self.offset is None else rest - self.offset


def decompose(
    params: Params,
    hidden: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    clamps: HeadClamps = NO_CLAMPS,
    dense: bool = False,
    large: int = bn.LARGE_CONCEPT_THRESHOLD,
    stop_discovered_gradient: bool = False,
) -> Parts:
    """Splits hidden rows (N, D) of a model with concepts into known features, discovered features and epsilon.

    clamps.epsilon "published": epsilon is what the features leave of the hidden rows, and none where a known concept is
    clamped. "frozen": epsilon (and, without a discovered head, the features that stand in for it) is that of the pass
    without clamps, so a clamp moves `composed` by exactly what it moves the features.
    dense, large: see `heads.run_head`. stop_discovered_gradient: the discovered head reads stop_gradient(hidden), as in
    the published forward pass, so that its losses do not train the backbone. A strict model ignores it: there the
    discovered concepts are a path of the prediction.

    Source: the published package's InterpretableCausalDiffusionLM.forward.
    """
    concept = config.concept
    assert concept is not None, "a bare backbone has no decomposition"
    rule = clamps.epsilon
    known = run_known_head(params, hidden, config, compute, clamps.known, rule, dense, large)
    read = lax.stop_gradient(hidden) if stop_discovered_gradient and not concept.is_strict else hidden
    discovered = run_discovered_head(params, read, config, compute, clamps.discovered, rule, dense, large)
    # Without a discovered head, all that is not known goes to the logits as it is (published), and epsilon is about 0.
    if discovered is None:
        reference = known.unclamped if rule == "frozen" else known.features
        beside_known, unclamped = (hidden - reference,) * 2
    else:
        beside_known, unclamped = discovered.features, discovered.unclamped
    offset = None
    if concept.dictionary is not None and concept.dictionary.offset:
        offset = params["unknown_head"]["offset"]["bias"].astype(compute.dtype)[None, :]
        beside_known, unclamped = beside_known + offset, unclamped + offset
    epsilon = None
    if concept.use_epsilon_correction and rule == "frozen":
        epsilon = hidden - (unclamped + known.unclamped)
    elif concept.use_epsilon_correction and clamps.known is None:
        epsilon = hidden - (beside_known + known.features)
    if epsilon is not None:
        beside_known = beside_known + epsilon
    # The order of these sums is the published one: in bfloat16 it decides how `composed` is rounded.
    return Parts(hidden, known, discovered, offset, epsilon, beside_known, beside_known + known.features)


def logit_features(
    params: Params,
    hidden: jax.Array,
    config: ModelConfig,
    compute: Compute,
    clamps: RowClamps | None = None,
    offsets: jax.Array | None = None,
) -> jax.Array:
    """Hidden rows (N, D) to the rows (N, D) that the output projection reads, with `clamps` on rows at `offsets` (N,).

    Without clamps and with epsilon these are the hidden rows themselves, up to rounding, so the heads are not run.
    Faithful rounding runs them, because the published model in bfloat16 reads the rounded sum.
    """
    concept = config.concept
    if concept is None or (clamps is None and concept.use_epsilon_correction and not compute.faithful_rounding):
        return hidden
    at_rows = NO_CLAMPS
    if clamps is not None:
        assert offsets is not None
        at_rows = clamps.at(offsets)
    return decompose(params, hidden, config=config, compute=compute, clamps=at_rows).composed


def cross_entropy(params: Params, features: jax.Array, targets: jax.Array, compute: Compute) -> jax.Array:
    """−log p(target) in nats, (N,) float32, for features (N, D) and the token ids targets (N,)."""
    return optax.softmax_cross_entropy_with_integer_labels(lm_logits(params, features, compute), targets)

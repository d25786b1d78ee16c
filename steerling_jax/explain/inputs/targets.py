"""Targets of an input attribution: scalars computed from the hidden row at which a token was committed.

A target is a frozen pytree whose leaves are token or concept ids. Ids are therefore traced values: one compiled program
serves every id, and targets of one class are explained in one batch, each row with its own id.

Legend: B rows, D width, V vocabulary, C concepts.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.backbone import decoder_backbone
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import HeadSpec, discovered_spec, known_spec


class AttributionTarget(Protocol):
    """A scalar function of one hidden row.

    guided: whether, in text generated with guidance, the target reads the combination of both branches, as the logits
    do (True), or the conditional branch alone (False). A target with a field `layer` reads the output of that block,
    counted from 0, in place of the row after the final norm; None means the latter.
    """

    guided: ClassVar[bool]

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        """Raises `UserError` if the model lacks the target's token or concept."""
        ...

    def value(
        self,
        params: Params,
        rows: jax.Array,
        tokens: jax.Array,
        config: ModelConfig | DecoderConfig,
        compute: Compute,
    ) -> jax.Array:
        """The target's values (B,) float32.

        rows (B, D) float32: hidden rows after the final norm. tokens (B,): the tokens committed there. The target's
        own fields hold one id per row, (B,).
        """
        ...


@struct.dataclass
class TokenLogit:
    """The logit of the committed token, as the model computes it."""

    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        pass

    def value(self, params, rows, tokens, config, compute):
        return _logit(params, rows, tokens, config, compute)


TOKEN_LOGIT = TokenLogit()


@struct.dataclass
class TokenLogProbability:
    """The log-probability of the committed token in nats.

    The softmax runs over the whole vocabulary, before suppression of tokens, repetition penalty and temperature.
    """

    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        pass

    def value(self, params, rows, tokens, config, compute):
        logits = _logits(params, rows, config, compute)
        return _logit(params, rows, tokens, config, compute) - jax.nn.logsumexp(logits, axis=-1)


@struct.dataclass
class TokenAboveMean:
    """The committed token's logit minus a mean of all logits: what centred concept contributions add up to.

    reference: "vocabulary" for the plain mean, "model" for the mean under the model's own distribution, as in
    `concept_contributions`.
    """

    reference: Literal["vocabulary", "model"] = struct.field(pytree_node=False, default="vocabulary")
    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        if self.reference not in ("vocabulary", "model"):
            raise UserError(f"reference is {self.reference!r}, but it must be 'vocabulary' or 'model'.")

    def value(self, params, rows, tokens, config, compute):
        logits = _logits(params, rows, config, compute)
        weight = jax.nn.softmax(logits, axis=-1) if self.reference == "model" else 1 / logits.shape[-1]
        return _logit(params, rows, tokens, config, compute) - jnp.sum(weight * logits, axis=-1)


@struct.dataclass
class TokenContrast:
    """The committed token's logit minus the logit of the token with the id `other`."""

    other: int
    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        if not _is_id(self.other, config.vocab_size):
            raise UserError(f"The other token is {self.other!r}, but token ids are 0 to {config.vocab_size - 1}.")

    def value(self, params, rows, tokens, config, compute):
        other = jnp.asarray(self.other)
        return _logit(params, rows, tokens, config, compute) - _logit(params, rows, other, config, compute)


@struct.dataclass
class ConceptActivation:
    """A concept's logit or activation at the committed position, also where it is not among the head's top k.

    form: "logit", the head's score (clipped to ±15 as in the model), or "weight", its sigmoid. The logit is the
    default, because the sigmoid of a large positive or negative logit has a gradient of nearly 0. In a dictionary the
    score is not clipped, and the weight is its positive part.
    """

    concept: int
    kind: Literal["known", "discovered"] = struct.field(pytree_node=False, default="known")
    form: Literal["logit", "weight"] = struct.field(pytree_node=False, default="logit")
    guided: ClassVar[bool] = False

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        if self.kind not in ("known", "discovered") or self.form not in ("logit", "weight"):
            raise UserError(
                f"kind is {self.kind!r} and form is {self.form!r}, but they must be 'known' or 'discovered', and "
                "'logit' or 'weight'."
            )
        spec = self._spec(config) if isinstance(config, ModelConfig) and config.concept is not None else None
        if spec is None:
            raise UserError(f"This model has no {self.kind} concepts to explain; choose another target.")
        if not _is_id(self.concept, spec.n_concepts):
            raise UserError(
                f"The concept is {self.concept!r}, but {self.kind} concepts are 0 to {spec.n_concepts - 1}."
            )

    def value(self, params, rows, tokens, config, compute):
        view, _ = view_concepts(params, rows.astype(compute.dtype), self.kind, config, compute)
        logits = bn.logits_of(view, jnp.asarray(self.concept)[:, None], compute.operands)[:, 0]
        return logits if self.form == "logit" else view.weights(logits)

    def _spec(self, config: ModelConfig) -> HeadSpec | None:
        assert config.concept is not None
        return known_spec(config.concept) if self.kind == "known" else discovered_spec(config.concept)


def reads_selection(target: AttributionTarget, config: ModelConfig | DecoderConfig) -> bool:
    """Whether the target is computed from the selected concepts alone, as the logits of a strict model are."""
    concept = config.concept if isinstance(config, ModelConfig) else None
    return concept is not None and concept.is_strict and target.guided


def _logit(params: Params, rows: jax.Array, tokens: jax.Array, config: Any, compute: Compute) -> jax.Array:
    """The logits (B,) of tokens (B,) at hidden rows (B, D)."""
    if not isinstance(config, ModelConfig):
        return jnp.take_along_axis(_decoder_logits(params, rows, config, compute), tokens[:, None], axis=1)[:, 0]
    return jnp.sum(rows * jnp.take(lm_head_weight(params), tokens, axis=0).astype(jnp.float32), axis=-1)


def _logits(params: Params, rows: jax.Array, config: Any, compute: Compute) -> jax.Array:
    """The logits (B, V) of all tokens at hidden rows (B, D)."""
    if isinstance(config, ModelConfig):
        return matmul_t(rows, lm_head_weight(params).astype(jnp.float32), "float32")
    return _decoder_logits(params, rows, config, compute)


def _decoder_logits(params: Params, rows: jax.Array, config: DecoderConfig, compute: Compute) -> jax.Array:
    """The logits (B, V), which some families cap: they are no linear function of the row."""
    return decoder_backbone(config, compute).logits(params, rows.astype(compute.dtype))


def _is_id(number: object, count: int) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(0 <= number < count)

"""What an input attribution may explain: a number read from one hidden row, of the position where a token was written.

Targets are frozen pytrees whose leaves are ids, so one compiled program serves every id, and targets of one type are
explained together, each with its own.

Legend: B rows, D width, V vocabulary, C concepts.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.errors import UserError
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import Params, lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import HeadSpec, known_spec, unknown_spec


class AttributionTarget(Protocol):
    """guided: whether guided text's is read from both branches, as its logits are, or from the conditional one."""

    guided: ClassVar[bool]

    def check(self, config: ModelConfig) -> None:
        """Raises `UserError` where the model has no such thing."""
        ...

    def value(
        self, params: Params, rows: jax.Array, tokens: jax.Array, config: ModelConfig, compute: Compute
    ) -> jax.Array:
        """Hidden rows (B, D) float32 after the final norm and the tokens (B,) written there, to the targets (B,)
        float32. The fields hold one number a row."""
        ...


@struct.dataclass
class TokenLogit:
    """The raw logit of the token that was written."""

    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig) -> None:
        pass

    def value(self, params, rows, tokens, config, compute):
        return _logit(params, rows, tokens)


TOKEN_LOGIT = TokenLogit()


@struct.dataclass
class TokenLogProbability:
    """The log-probability of the token that was written, in nats, over the whole vocabulary: before suppression,
    repetition penalty and temperature."""

    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig) -> None:
        pass

    def value(self, params, rows, tokens, config, compute):
        logits = matmul_t(rows, lm_head_weight(params).astype(jnp.float32), "float32")
        return _logit(params, rows, tokens) - jax.nn.logsumexp(logits, axis=-1)


@struct.dataclass
class TokenContrast:
    """How much larger the written token's logit is than that of the token `other`."""

    other: int
    guided: ClassVar[bool] = True

    def check(self, config: ModelConfig) -> None:
        if not _is_id(self.other, config.vocab_size):
            raise UserError(f"The other token is {self.other!r}, but ids are 0 to {config.vocab_size - 1}.")

    def value(self, params, rows, tokens, config, compute):
        return _logit(params, rows, tokens) - _logit(params, rows, jnp.asarray(self.other))


@struct.dataclass
class ConceptActivation:
    """A concept at the position where the token was written, whether the head keeps it there or not.

    form: "logit", the head's score (clipped at ±15 as in the model), or "weight", its sigmoid. The logit is the
    default: where a concept is surely on or off the sigmoid is flat, and a flat target has nothing to explain.
    """

    concept: int
    kind: Literal["known", "discovered"] = struct.field(pytree_node=False, default="known")
    form: Literal["logit", "weight"] = struct.field(pytree_node=False, default="logit")
    guided: ClassVar[bool] = False

    def check(self, config: ModelConfig) -> None:
        if self.kind not in ("known", "discovered") or self.form not in ("logit", "weight"):
            raise UserError(
                f"kind is {self.kind!r} and form is {self.form!r}, but they must be 'known' or 'discovered', and "
                "'logit' or 'weight'."
            )
        spec = None if config.concept is None else self._spec(config)
        if spec is None:
            raise UserError(f"This model has no {self.kind} concepts to explain; choose another target.")
        if not _is_id(self.concept, spec.n_concepts):
            raise UserError(
                f"The concept is {self.concept!r}, but {self.kind} concepts are 0 to {spec.n_concepts - 1}."
            )

    def value(self, params, rows, tokens, config, compute):
        view, _ = view_concepts(params, rows.astype(compute.dtype), self.kind, config, compute)
        logits = bn.logits_of(view, jnp.asarray(self.concept)[:, None], compute.operands)[:, 0]
        return logits if self.form == "logit" else jax.nn.sigmoid(logits)

    def _spec(self, config: ModelConfig) -> HeadSpec | None:
        assert config.concept is not None
        return known_spec(config.concept) if self.kind == "known" else unknown_spec(config.concept)


def _logit(params: Params, rows: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.sum(rows * jnp.take(lm_head_weight(params), tokens, axis=0).astype(jnp.float32), axis=-1)


def _is_id(number: object, count: int) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(0 <= number < count)

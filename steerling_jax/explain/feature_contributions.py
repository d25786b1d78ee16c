"""The features behind each token of a text, in a model with a bottleneck: every logit as an exact sum over them.

With the latents z_j of the features f_j of a row, a token's logit is `Σ_j z_j (W_dec[f_j] · u) + b_dec · u`, where u is
the token's row of the output projection. Logits differ between rows by what all tokens share, so the split can also be
that of the logit minus its mean under the model's own distribution q: u is then the row minus the mean row, and the
parts say what a feature does for the token against the tokens that compete with it.

Legend: n tokens, D width, V vocabulary, k features of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.bottleneck import bottleneck_of, detach_bottleneck
from steerling_jax.autoencoders.encoding import decode_rows, encode_rows
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.explain.given_text import given_trace
from steerling_jax.models.output_projection import cap_logits, output_projection

_ROWS = 16  # rows of a call, whose k rows of the decoder and whose logits are in memory
_SHOWN = 3  # features of a token that are printed

FeatureReference = Literal["raw", "model"]


@dataclass(frozen=True, repr=False)
class FeatureContributions(Tabular):
    """The parts of the logits of n tokens, as NumPy arrays in the order of the text.

    positions, token_ids (n,) int32. probabilities (n,): what the model gave the token.
    features (n, k) int32, values (n, k): the features of the row that predicts the token, largest latent first.
    contributions (n, k), bias (n,): they add up to `logits` (n,), the token's logit minus `reference_logits` (n,), up
    to `error` (n,) of rounding. Logits are those before a cap, where the model has one.
    pieces: the text of each token. promoted: of the features that are printed, the tokens that each promotes most.

    Prints as a table with a row for each token; `to_dataframe` has a row for each token and feature, and one for its
    bias, which add up to the logit.
    """

    positions: np.ndarray
    token_ids: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    values: np.ndarray
    contributions: np.ndarray
    bias: np.ndarray
    logits: np.ndarray
    reference_logits: np.ndarray
    error: np.ndarray
    reference: FeatureReference
    pieces: tuple[str, ...]
    promoted: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def strongest(self, token: int, count: int = _SHOWN) -> list[tuple[int, float]]:
        """The features that raise the logit of the token at the place `token` most, with their contributions."""
        order = np.argsort(-self.contributions[token], kind="stable")[:count]
        raised = [j for j in order if self.contributions[token, j] > 0]
        return [(int(self.features[token, j]), float(self.contributions[token, j])) for j in raised]

    def table(self) -> Table:
        """A row for each token and feature, and for its bias."""
        n, k = self.features.shape
        each = np.repeat(np.arange(n), k + 1)
        columns = {
            "position": self.positions[each],
            "token": [self.pieces[i] for i in each],
            "feature": np.concatenate([self.features, np.full((n, 1), -1)], axis=1).reshape(-1),
            "value": np.concatenate([self.values, np.ones((n, 1))], axis=1).reshape(-1),
            "contribution": np.concatenate([self.contributions, self.bias[:, None]], axis=1).reshape(-1),
        }
        return Table(self._title(), columns)

    def summary(self) -> Table:
        """A row for each token."""
        shown = [
            "  ".join(
                f"#{feature} {part:+.2f} ({' '.join(word.strip() for word in self.promoted.get(feature, ()))})"
                for feature, part in self.strongest(i)
            )
            for i in range(len(self))
        ]
        columns: dict[str, Any] = {"position": self.positions, "token": list(self.pieces)}
        return Table(self._title(), columns | {"probability": self.probabilities, "features": shown})

    def _title(self) -> str:
        return f"{counted(len(self), 'token')}, each logit a sum over {self.features.shape[1]} features and a bias"


def feature_contributions(
    bundle: Bundle, text_or_ids: str | Sequence[int], *, reference: FeatureReference = "raw", words: int = 4
) -> FeatureContributions:
    """Splits the logit of every token of a text but the first over the features of the model's bottleneck.

    Args:
        bundle: a model with a bottleneck (`steerling attach`).
        text_or_ids: the text, or its ids (T,).
        reference: "raw" splits the logit itself; "model" the logit minus its mean under the model's distribution, which
            is what the parts are worth against other tokens.
        words: the number of promoted tokens of each printed feature.

    A diffusion model predicts each token with the tokens before it given and all others masked, as in `sj.given_trace`.
    Raises `UserError` for a model without a bottleneck and for a text of fewer than two tokens.

    Example:
        >>> bundle = sj.load("runs/attach/export")
        >>> parts = sj.feature_contributions(bundle, "The capital of France is Paris", reference="model")
        >>> parts.contributions.sum(axis=1) + parts.bias  # the logits
    """
    require(reference in ("raw", "model"), f"reference is {reference!r}; give 'raw' or 'model'.", "reference")
    bottleneck = bottleneck_of(bundle)
    weights = bottleneck.weights
    tokens = encode(bundle, text_or_ids, "text_or_ids")
    require(len(tokens) >= 2, f"text_or_ids has {counted(len(tokens), 'token')}; give at least 2.", "text_or_ids")
    rows = _predicting_rows(detach_bottleneck(bundle), tokens)
    targets, projection = tokens[1:], output_projection(bundle.params, bundle.config)
    batches = []
    for first in range(0, len(rows), _ROWS):
        part, target = rows[first : first + _ROWS], targets[first : first + _ROWS]
        pad = _ROWS - len(part)
        found = _split(
            weights,
            projection.table,
            np.pad(part, ((0, pad), (0, 0))),
            np.pad(target, (0, pad)),
            cap=projection.cap,
            centred=reference == "model",
        )
        batches.append([np.asarray(a)[: len(part)] for a in jax.device_get(found)])
    split = _Split(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    error = np.abs(split.contributions.sum(axis=1, dtype=np.float64) + split.bias - split.logits)
    result = FeatureContributions(
        positions=np.arange(1, len(tokens), dtype=np.int32),
        token_ids=targets,
        error=error,
        reference=reference,
        pieces=tuple(bundle.tokenizer.piece(int(token)) for token in targets),
        **split._asdict(),
    )
    shown = sorted({feature for i in range(len(result)) for feature, _ in result.strongest(i)})
    named = promoted_tokens_of(bundle, bottleneck, shown, words)
    promoted = {one: tuple(row) for one, row in zip(shown, named, strict=True)}
    return dataclasses.replace(result, promoted=promoted)


def _predicting_rows(bundle: Bundle, tokens: np.ndarray) -> np.ndarray:
    """The hidden rows (T − 1, D) after the final norm that predict the tokens after the first of tokens (T,)."""
    hidden = given_trace(bundle, tokens[:1].tolist(), tokens[1:].tolist()).hidden
    assert hidden is not None
    return np.asarray(hidden, np.float32)


class _Split(NamedTuple):
    features: Any
    values: Any
    contributions: Any
    bias: Any
    logits: Any
    reference_logits: Any
    probabilities: Any


@partial(jax.jit, static_argnames=("cap", "centred"))
def _split(
    weights: Weights, table: jax.Array, rows: jax.Array, targets: jax.Array, *, cap: float | None, centred: bool
) -> _Split:
    """The parts of the logits of targets (N,) for hidden rows (N, D)."""
    exact = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    k = weights.settings.k
    assert k is not None
    values, features = encode_rows(weights, rows, k)
    output = decode_rows(weights, values, features)
    scale = weights.latent_scale()
    table = table.astype(jnp.float32)
    logits = exact("nd,vd->nv", output, table)
    q = jax.nn.softmax(cap_logits(logits, cap)[0], axis=-1)
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    toward, reference = table[targets], jnp.zeros_like(own)
    if centred:
        toward = toward - exact("nv,vd->nd", q, table)
        reference = jnp.sum(q * logits, axis=-1)
    direct = exact("nkd,nd->nk", weights.W_dec[features].astype(jnp.float32), toward)
    direct = direct if scale is None else direct / scale[features]
    bias = exact("d,nd->n", weights.b_dec.astype(jnp.float32), toward)
    probability = jnp.take_along_axis(q, targets[:, None], axis=1)[:, 0]
    return _Split(features, values, values * direct, bias, own - reference, reference, probability)

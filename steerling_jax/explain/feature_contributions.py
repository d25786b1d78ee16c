"""The features behind each token of a text: every logit as a sum over those of a bottleneck, or of the last block.

With the latents z_j of the features f_j of a row, a token's logit is `Σ_j z_j (W_dec[f_j] · u) + b_dec · u`, where u is
the token's row of the output projection. Logits differ between rows by what all tokens share, so the split can also be
that of the logit minus its mean under the model's own distribution q: u is then the row minus the mean row, and the
parts say what a feature does for the token against the tokens that compete with it.

Features of an autoencoder of the last block reach the logits through the final norm, h ↦ h ⊙ g, g = weight / rms(h).
With g frozen at its value for the row, the same sum holds with u ⊙ g in place of u, and a further part, `residual`, for
what the autoencoder leaves over: (h − ĥ) ⊙ g · u. In a model with a bottleneck there is none.

Legend: n tokens, D width, V vocabulary, k features of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import bottleneck_of, detach_bottleneck
from steerling_jax.autoencoders.encoding import decode_rows
from steerling_jax.autoencoders.model_fit import check_fits
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.decoding.tables import counted
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.explain.features.contribution_table import FeatureContributions, FeatureReference
from steerling_jax.explain.given_text import given_trace
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.decoder.backbone import final_norm_gain
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.output_projection import cap_logits, output_projection

_ROWS = 16  # rows of a call, whose k rows of the decoder and whose logits are in memory


def feature_contributions(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    *,
    autoencoder: Autoencoder | None = None,
    reference: FeatureReference = "raw",
    words: int = 4,
) -> FeatureContributions:
    """Splits the logit of every token of a text but the first over features.

    Args:
        bundle: a model with a bottleneck (`steerling attach`), or any autoregressive model with an autoencoder.
        text_or_ids: the text, or its ids (T,).
        autoencoder: of the model's last block, whose features are taken with the scale of the final norm frozen; None
            for the bottleneck.
        reference: "raw" splits the logit itself; "model" the logit minus its mean under the model's distribution, which
            is what the parts are worth against other tokens.
        words: the number of promoted tokens of each printed feature.

    A diffusion model predicts each token with the tokens before it given and all others masked, as in `sj.given_trace`.
    Raises `UserError` for a model without a bottleneck where no autoencoder is given, for an autoencoder of another
    block or kind, and for a text of fewer than two tokens. `trace_feature_contributions` is of a trace.

    Example:
        >>> bundle = sj.load("runs/attach/export")
        >>> parts = sj.feature_contributions(bundle, "The capital of France is Paris", reference="model")
        >>> parts.contributions.sum(axis=1) + parts.bias  # the logits
    """
    require(reference in ("raw", "model"), f"reference is {reference!r}; give 'raw' or 'model'.", "reference")
    tokens = encode(bundle, text_or_ids, "text_or_ids")
    require(len(tokens) >= 2, f"text_or_ids has {counted(len(tokens), 'token')}; give at least 2.", "text_or_ids")
    plain = detach_bottleneck(bundle)
    if autoencoder is None:
        rows, gain = _predicting_rows(plain, tokens), None
    else:
        check_last_block(autoencoder, plain)
        rows, gain = _last_block_rows(plain, tokens, None)
    positions = np.arange(1, len(tokens), dtype=np.int32)
    return _contributions(bundle, autoencoder, rows, gain, positions, tokens[1:], reference, words)


def trace_feature_contributions(
    bundle: Bundle,
    trace: Trace,
    *,
    autoencoder: Autoencoder | None = None,
    reference: FeatureReference = "raw",
    words: int = 4,
) -> FeatureContributions:
    """`feature_contributions` of the committed tokens of a trace, in the order of their positions.

    The rows are those that the tokens were committed from, with the steering of the trace. `error` is the distance to
    the recorded logits too. Raises `UserError` as `feature_contributions` does, and for guided text, whose logits are
    of two passes.
    """
    require(trace.guidance == 0, "Guided text has logits of two passes, which are no sum over features of one.")
    commits = sorted((position, token, logit) for _, position, token, logit in trace.flat())
    positions, targets = (np.asarray([one[i] for one in commits], np.int32) for i in range(2))
    plain = detach_bottleneck(bundle)
    if autoencoder is not None:
        check_last_block(autoencoder, plain)
        rows, gain = (one[positions - 1] for one in _last_block_rows(plain, trace.committed, trace))
    else:
        # Recorded rows are those that the output projection read, behind the bottleneck.
        order = np.argsort([position for _, position, *_ in trace.flat()], kind="stable")
        rows, gain = hidden_rows(plain, dataclasses.replace(trace, hidden=None))[order], None
    result = _contributions(bundle, autoencoder, rows, gain, positions, targets, reference, words)
    cap = output_projection(bundle.params, bundle.config).cap
    logits = np.asarray(cap_logits(jnp.asarray(result.logits + result.reference_logits), cap)[0])
    recorded = np.asarray([one[2] for one in commits])
    return dataclasses.replace(result, error=np.maximum(result.error, np.abs(logits - recorded)))


def _contributions(
    bundle: Bundle,
    autoencoder: Autoencoder | None,
    rows: np.ndarray,
    gain: np.ndarray | None,
    positions: np.ndarray,
    targets: np.ndarray,
    reference: FeatureReference,
    words: int,
) -> FeatureContributions:
    """The parts of the logits of the tokens `targets` (n,) at `positions` (n,), which were predicted from rows (n, D).

    autoencoder: of the last block's rows, with the `gain` (n, D) of the final norm; None for the model's bottleneck.
    """
    exact = autoencoder is None
    autoencoder = bottleneck_of(bundle) if autoencoder is None else autoencoder
    gain = np.ones_like(rows) if gain is None else gain
    values, features = (np.asarray(one) for one in autoencoder.encode(rows))
    projection = output_projection(bundle.params, bundle.config)
    batches = []
    for first in range(0, len(rows), _ROWS):
        part = [one[first : first + _ROWS] for one in (values, features, rows, gain, targets)]
        count = len(part[0])
        padded = [np.pad(one, ((0, _ROWS - count),) + ((0, 0),) * (one.ndim - 1)) for one in part]
        found = _split(
            autoencoder.weights,
            projection.table,
            *padded,
            cap=projection.cap,
            centred=reference == "model",
            exact=exact,
        )
        batches.append([np.asarray(a)[:count] for a in jax.device_get(found)])
    split = _Split(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    total = split.contributions.sum(axis=1, dtype=np.float64) + split.bias + split.residual
    error = np.abs(total - split.logits)
    result = FeatureContributions(
        positions=positions,
        token_ids=targets,
        error=error,
        reference=reference,
        pieces=tuple(bundle.tokenizer.piece(int(token)) for token in targets),
        features=features.astype(np.int32),
        values=values,
        **split._asdict(),
    )
    shown = sorted({feature for i in range(len(result)) for feature, _ in result.strongest(i)})
    named = promoted_tokens_of(bundle, autoencoder, shown, words)
    promoted = {one: tuple(row) for one, row in zip(shown, named, strict=True)}
    return dataclasses.replace(result, promoted=promoted)


def _predicting_rows(bundle: Bundle, tokens: np.ndarray) -> np.ndarray:
    """The hidden rows (T − 1, D) after the final norm that predict the tokens after the first of tokens (T,)."""
    hidden = given_trace(bundle, tokens[:1].tolist(), tokens[1:].tolist()).hidden
    assert hidden is not None
    return np.asarray(hidden, np.float32)


def check_last_block(autoencoder: Autoencoder, bundle: Bundle) -> None:
    """Raises `UserError` unless the logits of the model are linear in the autoencoder's features."""
    check_fits(autoencoder, bundle)
    name, last = autoencoder.name or "The autoencoder", bundle.backbone.n_layers - 1
    require(
        isinstance(bundle.config, DecoderConfig),
        f"{bundle.name} is a diffusion model, whose logits are split by concepts (sj.concept_contributions) or by a "
        "bottleneck (steerling attach).",
    )
    require(
        autoencoder.layer == last,
        f"{name} reads block {autoencoder.layer}, but only features of the last block, {last}, add up to logits; give "
        "an autoencoder of it.",
    )
    plain = autoencoder.weights.settings.normalise == "none" and autoencoder.weights.W_skip is None
    require(plain, f"{name} normalises its input or has a skip connection, so its output is no sum of features; give "
            "another one.")  # fmt: skip


def _last_block_rows(bundle: Bundle, tokens: np.ndarray, trace: Trace | None) -> tuple[np.ndarray, np.ndarray]:
    """The outputs h of the last block (T − 1, D) that predict the tokens after the first, and the gain g of the final
    norm at each, (T − 1, D). trace: with whose edits the model reads; None for none."""
    last = bundle.backbone.n_layers - 1
    length = padded_length(len(tokens), bundle.config)
    padded = jnp.asarray(np.pad(tokens, (0, length - len(tokens))))[None]
    edits = ()
    if trace is not None:
        edits = place_edits(trace.edits, jnp.arange(length)[None] >= trace.prompt_length)
    rows, gain = _with_gain(bundle.params, padded, edits, backbone=bundle.backbone, config=bundle.config, last=last)
    rows, gain = (np.asarray(one)[0, : len(tokens) - 1] for one in (rows, gain))
    return rows, gain


@partial(jax.jit, static_argnames=("backbone", "config", "last"))
def _with_gain(
    params: Params,
    tokens: jax.Array,
    edits: tuple[LayerEdit, ...],
    *,
    backbone: Backbone,
    config: DecoderConfig,
    last: int,
) -> tuple[jax.Array, jax.Array]:
    rows = backbone.run(params, backbone.embed(params, tokens), edits=edits, capture=(last,)).captured[last]
    return rows.astype(jnp.float32), final_norm_gain(params, rows, config)


class _Split(NamedTuple):
    contributions: Any
    bias: Any
    residual: Any
    logits: Any
    reference_logits: Any
    probabilities: Any


@partial(jax.jit, static_argnames=("cap", "centred", "exact"))
def _split(
    weights: Weights,
    table: jax.Array,
    values: jax.Array,
    features: jax.Array,
    rows: jax.Array,
    gain: jax.Array,
    targets: jax.Array,
    *,
    cap: float | None,
    centred: bool,
    exact: bool,
) -> _Split:
    """The parts of the logits of targets (N,) for rows (N, D) with the latents values, features (N, k).

    gain: (N, D), by which rows are multiplied before the output projection. exact: the model reads the autoencoder's
    output in place of the rows, so that nothing is left over.
    """
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    output = decode_rows(weights, values, features)
    scale = weights.latent_scale()
    table = table.astype(jnp.float32)
    hidden = (output if exact else rows) * gain
    logits = product("nd,vd->nv", hidden, table)
    q = jax.nn.softmax(cap_logits(logits, cap)[0], axis=-1)
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    toward, reference = table[targets], jnp.zeros_like(own)
    if centred:
        toward = toward - product("nv,vd->nd", q, table)
        reference = jnp.sum(q * logits, axis=-1)
    toward = toward * gain
    direct = product("nkd,nd->nk", weights.W_dec[features].astype(jnp.float32), toward)
    direct = direct if scale is None else direct / scale[features]
    bias = product("d,nd->n", weights.b_dec.astype(jnp.float32), toward)
    residual = jnp.zeros_like(bias) if exact else product("nd,nd->n", rows - output, toward)
    probability = jnp.take_along_axis(q, targets[:, None], axis=1)[:, 0]
    return _Split(values * direct, bias, residual, own - reference, reference, probability)

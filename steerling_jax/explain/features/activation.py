"""A feature on one text: the tokens at which it is kept, and the tokens that its strongest latent came from.

Legend: T tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import detach_bottleneck
from steerling_jax.bundle import Bundle, encode
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import latents_of
from steerling_jax.explain.given_text import given_trace
from steerling_jax.explain.inputs.feature_target import feature_activation
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.models.decoder.config import DecoderConfig


@dataclass(frozen=True)
class FeatureOnText:
    """Where a feature is kept in a text, and why.

    pieces, values (T,): the tokens and the feature's latent at each, 0 where it is not kept or the row has an extreme
    norm. at: the token of the largest one that can be explained; None if there is none. scores: for tokens 0 to `at`,
    what each adds to the pre-activation there (integrated gradients from the mean embedding). pre_activation, baseline:
    with the text and without it; the scores add up to the difference, up to `error`.
    """

    feature: int
    pieces: tuple[str, ...]
    values: tuple[float, ...]
    at: int | None
    scores: tuple[float, ...] = ()
    pre_activation: float = 0.0
    baseline: float = 0.0
    error: float = 0.0


def explain_activation(
    bundle: Bundle, autoencoder: Autoencoder, feature: int, text_or_ids: str | Sequence[int]
) -> FeatureOnText:
    """The latents of a feature on a text and the input attribution of the largest one but the last token's.

    Raises `UserError` for a diffusion model, whose rows depend on what is masked: use `sj.attribute_inputs` with
    `feature_activation` on a trace there.
    """
    plain = detach_bottleneck(bundle)
    require(
        isinstance(plain.config, DecoderConfig),
        f"{bundle.name} is a diffusion model, whose rows depend on what is masked; use sj.attribute_inputs with "
        "feature_activation on a trace.",
    )
    target = feature_activation(autoencoder, feature)
    tokens = encode(plain, text_or_ids, "text_or_ids")
    require(len(tokens) >= 2, "The text has 1 token; give at least 2.", "text_or_ids")
    part = latents_of(plain, autoencoder, tokens)
    values = np.where(part.indices == feature, part.values, 0.0).sum(axis=1)
    pieces = tuple(plain.tokenizer.piece(int(token)) for token in tokens)
    found = FeatureOnText(feature, pieces, tuple(values.tolist()), None)
    # The row of a token is explained through the commit of the next one, which the last token does not have.
    at = int(values[:-1].argmax())
    if values[at] <= 0:
        return found
    trace = given_trace(plain, tokens[:1].tolist(), tokens[1:].tolist())
    result = attribute_inputs(plain, trace, target=target, positions=[at + 1])
    return FeatureOnText(
        feature,
        pieces,
        found.values,
        at,
        tuple(result.attributions[0, : at + 1].tolist()),
        float(result.path_logits[0]),
        float(result.baseline_logits[0]),
        float(result.completeness_error[0]),
    )

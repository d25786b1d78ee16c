"""Features of an autoencoder on texts: which tell two sets of texts apart, and what one of them is about.

Rows of extreme norm are left out (a model's first position may have a norm a hundred times that of others): they would
own the strongest passages of many features.

Legend: T tokens of a text, D width, V vocabulary, S latents, k latents kept of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import detach_bottleneck
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import require
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.output_projection import output_projection
from steerling_jax.progress import Progress, no_progress

_NORM_LIMIT = 6.0  # times the median norm of the text's rows
_AROUND = 12  # tokens before and after the strongest one that a passage shows
_LONGEST = 512  # tokens of a text that are read together; longer texts are read in parts


class TextLatents(NamedTuple):
    """A text, or a part of a long one: its number, token ids (T,), and the latents kept at each token, (T, k)."""

    text: int
    tokens: np.ndarray
    values: np.ndarray
    indices: np.ndarray


def text_latents(
    bundle: Bundle, autoencoder: Autoencoder, texts: Sequence[str], progress: Progress = no_progress
) -> Iterator[TextLatents]:
    """The latents of texts, as the model reads them. Values are 0 at rows of extreme norm.

    autoencoder: of a block's output, or of the rows after the final norm where its `layer` is None.
    """
    plain = detach_bottleneck(bundle)
    longest = min(_LONGEST, bundle.config.context_length)
    for number, text in enumerate(texts):
        progress("reading texts", number, len(texts))
        ids = np.asarray([*plain.tokenizer.prefix, *plain.tokenizer.encode(text)], np.int32)
        require(len(ids) > 0, f"Text {number + 1} is empty; remove it.", "texts")
        for start in range(0, len(ids), longest):
            tokens = encode(plain, ids[start : start + longest].tolist(), "texts")
            size = min(longest, max(16, 1 << (len(tokens) - 1).bit_length()))
            padded = jnp.asarray(np.pad(tokens, (0, size - len(tokens))))[None]
            rows = _rows(plain.params, padded, jnp.asarray([len(tokens)]), backbone=plain.backbone,
                         layer=autoencoder.layer)  # fmt: skip
            rows = np.asarray(rows)[0, : len(tokens)]
            norms = np.linalg.norm(rows, axis=1)
            values, indices = (np.asarray(a) for a in autoencoder.encode(rows))
            within = norms <= _NORM_LIMIT * np.median(norms)
            yield TextLatents(number, tokens, values * within[:, None], indices)
    progress("reading texts", len(texts), len(texts))


@partial(jax.jit, static_argnames=("backbone", "layer"))
def _rows(params: Params, tokens: jax.Array, lengths: jax.Array, *, backbone: Backbone, layer: int | None) -> jax.Array:
    capture = () if layer is None else (layer,)
    result = backbone.run(params, backbone.embed(params, tokens), lengths=lengths, capture=capture)
    return (result.hidden if layer is None else result.captured[layer]).astype(jnp.float32)


@dataclass(frozen=True, repr=False)
class FeatureContrast(Tabular):
    """The features that fire in more texts of one set than of another, the largest difference first.

    features (n,) int32. positive, negative (n,): the share of the texts of each set in which the feature is kept at any
    token. strength (n,): its mean over the positive texts of the largest latent. promoted: the tokens that each
    promotes most.
    """

    features: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    strength: np.ndarray
    promoted: tuple[tuple[str, ...], ...]

    @property
    def difference(self) -> np.ndarray:
        """positive − negative, (n,)."""
        return self.positive - self.negative

    def table(self) -> Table:
        """A row for each feature."""
        columns = {
            "feature": self.features,
            "difference": self.difference,
            "positive": self.positive,
            "negative": self.negative,
            "strength": self.strength,
            "promotes": [" ".join(word.strip() for word in row) for row in self.promoted],
        }
        return Table(f"{counted(len(self.features), 'feature')} that tell the texts apart", columns)


def contrast_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    count: int = 10,
    words: int = 6,
    progress: Progress = no_progress,
) -> FeatureContrast:
    """Ranks features by the share of positive texts in which they fire, minus the share of negative ones.

    Source: the classifier without training of Qwen-Scope (2026). Raises `UserError` for a set without texts.
    """
    for name, texts in (("positive", positive), ("negative", negative)):
        require(len(texts) > 0, f"There are no {name} texts; a contrast needs texts of both sets.", name)
    strongest = np.zeros((len(positive) + len(negative), autoencoder.n_latents), np.float32)
    for part in text_latents(bundle, autoencoder, [*positive, *negative], progress):
        np.maximum.at(strongest[part.text], part.indices.reshape(-1), part.values.reshape(-1))
    fires, split = strongest > 0, len(positive)
    in_positive, in_negative = fires[:split].mean(axis=0), fires[split:].mean(axis=0)
    # Among equal differences, the stronger feature first.
    order = np.lexsort((-strongest[:split].mean(axis=0), in_negative - in_positive))[:count]
    promoted = promoted_tokens_of(bundle, autoencoder, order.tolist(), words)
    return FeatureContrast(
        order.astype(np.int32),
        in_positive[order],
        in_negative[order],
        strongest[:split].mean(axis=0)[order],
        tuple(map(tuple, promoted)),
    )


class Passage(NamedTuple):
    """A place where a feature is strong: the number of its text, the latent, and the tokens around the strongest one
    as (text, latent), with the place of the strongest."""

    text: int
    value: float
    pieces: tuple[tuple[str, float], ...]
    at: int


@dataclass(frozen=True)
class FeaturePage:
    """What a feature is about, on some texts.

    density: the share of the tokens at which it is kept. mean, largest: of its latent, where kept. promoted,
    suppressed: the tokens whose logits its direction raises and lowers most. passages: its strongest ones, at most one
    of a text.
    """

    feature: int
    density: float
    mean: float
    largest: float
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    passages: tuple[Passage, ...]


def feature_pages(
    bundle: Bundle,
    autoencoder: Autoencoder,
    features: Sequence[int],
    texts: Sequence[str],
    *,
    passages: int = 5,
    words: int = 10,
    progress: Progress = no_progress,
) -> list[FeaturePage]:
    """A page for each of the features. Raises `UserError` for a feature that does not exist, and without texts."""
    require(len(texts) > 0, "There are no texts; give some in which features may be strong.", "texts")
    promoted = promoted_tokens_of(bundle, autoencoder, features, words)
    suppressed = promoted_tokens_of(bundle, autoencoder, features, words, least=True)
    tokens = 0
    sums = np.zeros((len(features), 2))
    best: list[dict[int, Passage]] = [{} for _ in features]
    for part in text_latents(bundle, autoencoder, texts, progress):
        tokens += len(part.tokens)
        for place, feature in enumerate(features):
            latents = np.where(part.indices == feature, part.values, 0.0).sum(axis=1)
            sums[place] += latents.sum(), (latents > 0).sum()
            at = int(latents.argmax())
            before = best[place].get(part.text)
            if latents[at] > 0 and (before is None or before.value < latents[at]):
                best[place][part.text] = _passage(bundle, part, latents, at)
    pages = []
    for place, feature in enumerate(features):
        found = sorted(best[place].values(), key=lambda passage: -passage.value)
        pages.append(
            FeaturePage(
                feature=int(feature),
                density=float(sums[place, 1] / tokens),
                mean=float(sums[place, 0] / max(1.0, sums[place, 1])),
                largest=found[0].value if found else 0.0,
                promoted=tuple(promoted[place]),
                suppressed=tuple(suppressed[place]),
                passages=tuple(found[:passages]),
            )
        )
    return pages


def _passage(bundle: Bundle, part: TextLatents, latents: np.ndarray, at: int) -> Passage:
    first, last = max(0, at - _AROUND), at + _AROUND + 1
    around = zip(part.tokens[first:last].tolist(), latents[first:last].tolist(), strict=True)
    pieces = tuple((bundle.tokenizer.piece(token), float(value)) for token, value in around)
    return Passage(part.text, float(latents[at]), pieces, at - first)


_FEATURES = 16  # features whose logits (16, V) are in memory together


def promoted_tokens_of(
    bundle: Bundle, autoencoder: Autoencoder, features: Sequence[int], count: int, *, least: bool = False
) -> list[list[str]]:
    """The tokens whose logits the directions of features raise most, or with `least` lower most, as text.

    For an autoencoder of an inner block this leaves out what the later layers do with the direction.
    """
    S = autoencoder.n_latents
    for feature in features:
        require(0 <= feature < S, f"There is no feature {feature}; this autoencoder has 0 to {S - 1}.", "features")
    table = output_projection(bundle.params, bundle.config).table
    pieces: list[list[str]] = []
    for first in range(0, len(features), _FEATURES):
        part = np.asarray(features[first : first + _FEATURES], np.int32)
        padded = np.pad(part, (0, _FEATURES - len(part)))
        ids = _promoted(autoencoder.weights.W_dec, table, padded, count=count, least=least)
        pieces += [[bundle.tokenizer.piece(int(token)) for token in row] for row in np.asarray(ids)[: len(part)]]
    return pieces


@partial(jax.jit, static_argnames=("count", "least"))
def _promoted(decoder: jax.Array, table: jax.Array, features: jax.Array, *, count: int, least: bool) -> jax.Array:
    """Token ids (J, count) of the largest products of rows of the decoder and of the table (V, D)."""
    logits = decoder[features].astype(jnp.float32) @ table.astype(jnp.float32).T
    return lax.top_k(-logits if least else logits, min(count, table.shape[0]))[1]

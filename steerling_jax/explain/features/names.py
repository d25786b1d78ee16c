"""Names of features: words that predict in which passages a feature is active, chosen on one half of some texts and
scored on the other half, beside the names of other features.

Method and score are those of discovered concepts (`explain.naming.selection`).

Legend: m passages, S features, J of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import WORD_SEPARATOR, Concept, no_name, unique_names, unnamed
from steerling_jax.explain.feature_texts import TextLatents, promoted_tokens_of
from steerling_jax.explain.features.passages import passages_of
from steerling_jax.explain.naming.selection import MIN_ACTIVE, ProposedName, propose_names
from steerling_jax.progress import Progress, no_progress

THRESHOLD = 0.8  # of the AUC, below which a feature has no name
_CONTROLS = 16  # other features, whose names a feature's own is compared with
_BLOCK = 512  # features that are named together: their means of all passages are in memory, dense
_PROMOTED, _EXAMPLES, _EXAMPLE_CHARACTERS = 12, 2, 120


def name_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    features: Sequence[int],
    parts: Sequence[TextLatents],
    *,
    threshold: float = THRESHOLD,
    progress: Progress = no_progress,
) -> list[Concept]:
    """An entry of a catalogue for each feature, with its name, density and largest latent on the texts.

    A name needs an AUC of `threshold` at least, more than the other names have; `words` and `quality` are in the entry
    either way. A feature that is active in fewer than 5 passages of either half has none.
    """
    passages = passages_of(bundle, parts, autoencoder.n_latents)
    density, largest = measure(parts, autoencoder.n_latents)
    halves = passages.halves()
    texts = [[passages.texts[i] for i in half] for half in halves]
    means = [passages.means[half].tocsc() for half in halves]
    active = [np.asarray(one.astype(bool).sum(axis=0)).ravel() for one in means]
    scorable = np.flatnonzero((active[0] >= MIN_ACTIVE) & (active[1] >= MIN_ACTIVE))
    found: dict[int, ProposedName] = {}
    requested = np.intersect1d(features, scorable)
    for first in range(0, len(requested), _BLOCK):
        own = requested[first : first + _BLOCK]
        others = np.setdiff1d(scorable, own)
        spaced = np.linspace(0, len(others) - 1, min(_CONTROLS, len(others))).astype(int)
        together = np.concatenate([own, others[spaced]])
        chosen, scored = (one[:, together].toarray() for one in means)
        promoted = promoted_tokens_of(bundle, autoencoder, together.tolist(), _PROMOTED)
        _, names = propose_names((texts[0], chosen), (texts[1], scored), promoted)
        found |= dict(zip(own.tolist(), names, strict=False))
        progress("naming features", min(first + _BLOCK, len(requested)), len(requested))
    entries = []
    for feature in features:
        entry = Concept(int(feature), unnamed(int(feature), "feature"), head="feature", is_named=False)
        if int(feature) in found:
            column = means[0][:, [int(feature)]].toarray()[:, 0]
            entry = _named(entry, found[int(feature)], texts[0], column, threshold)
        size = float(largest[feature])
        entries.append(dataclasses.replace(entry, density=float(density[feature]), largest=size or None))
    return _with_unique_names(entries)


def measure(parts: Sequence[TextLatents], n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(density, largest latent) of each feature, (S,) each: the share of the tokens at which it is kept, and how
    strongly at most."""
    counts, largest = np.zeros(n_latents), np.zeros(n_latents, np.float32)
    for part in parts:
        np.add.at(counts, part.indices[part.values > 0], 1)
        np.maximum.at(largest, part.indices.reshape(-1), part.values.reshape(-1))
    return counts / sum(len(part.tokens) for part in parts), largest


def _named(
    entry: Concept, proposal: ProposedName, texts: Sequence[str], means: np.ndarray, threshold: float
) -> Concept:
    """The entry with a name, and examples from passages `texts`, in which the feature has the mean latents `means`."""
    quality, words = proposal.quality, proposal.words
    good = quality is not None and quality.auc >= max(threshold, quality.others or 0.0)
    strongest = [i for i in np.argsort(-means, kind="stable")[:_EXAMPLES] if means[i] > 0]
    name = f" {WORD_SEPARATOR} ".join(words) if good else no_name(entry.id, words) if words else entry.name
    examples = tuple(_shortened(texts[int(i)]) for i in strongest)
    return dataclasses.replace(entry, name=name, is_named=good, words=words, quality=quality, examples=examples)


def _with_unique_names(entries: Sequence[Concept]) -> list[Concept]:
    """The entries with " (2)" and so on after a name that a feature with a better one has."""
    named = [one for one in entries if one.is_named and one.quality is not None]
    named.sort(key=lambda one: (-(one.quality.auc if one.quality else 0.0), one.id))
    unique = dict(zip((one.id for one in named), unique_names([one.name for one in named], ()), strict=True))
    return [dataclasses.replace(one, name=unique.get(one.id, one.name)) for one in entries]


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[: _EXAMPLE_CHARACTERS - 1]}…"

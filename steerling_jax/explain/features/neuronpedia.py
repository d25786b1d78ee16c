"""Pages of features in the form of Neuronpedia's dashboards: a batch of features as one JSON object.

Source of the fields: SAEDashboard (`neuronpedia_dashboard`), whose files Neuronpedia imports. Comparisons with neurons
and correlations of features over a corpus are not computed; their lists are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerling_jax.explain.features.pages import FeaturePage, Passage

_EMPTY = ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
          "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
          "correlated_features_l1", "correlated_features_pearson", "decoder_weights_dist")  # fmt: skip
_DIGITS = 4


def neuronpedia_batch(pages: Sequence[FeaturePage], *, model: str, layer: int, name: str, texts: str) -> dict[str, Any]:
    """The batch of some pages. layer: the block that the autoencoder reads. name: of the set of autoencoders.
    texts: what the passages are from."""
    return {
        "model_id": model,
        "layer": layer,
        "sae_set": name,
        "features": [_feature(page, texts) for page in pages],
    }


def _feature(page: FeaturePage, texts: str) -> dict[str, Any]:
    return {
        "feature_index": page.feature,
        **{field: [] for field in _EMPTY},
        "neg_str": list(page.suppressed),
        "neg_values": _rounded(page.suppressed_logits),
        "pos_str": list(page.promoted),
        "pos_values": _rounded(page.promoted_logits),
        "frac_nonzero": page.density,
        "freq_hist_data_bar_values": _rounded([middle for middle, _ in page.latents]),
        "freq_hist_data_bar_heights": [count for _, count in page.latents],
        "logits_hist_data_bar_values": _rounded([middle for middle, _ in page.logits]),
        "logits_hist_data_bar_heights": [count for _, count in page.logits],
        "n_prompts_total": len(page.passages),
        "n_tokens_in_prompt": max((len(passage.pieces) for passage in page.passages), default=0),
        "dataset": texts,
        "activations": [_activation(passage, page) for passage in page.passages],
    }


def _activation(passage: Passage, page: FeaturePage) -> dict[str, Any]:
    """A passage, as one of the interval of all that are shown."""
    weakest, strongest = page.passages[-1].value, page.passages[0].value
    return {
        "bin_min": round(weakest, _DIGITS),
        "bin_max": round(strongest, _DIGITS),
        "bin_contains": 1.0,
        "qualifying_token_index": passage.at,
        "tokens": [piece for piece, _ in passage.pieces],
        "values": _rounded([value for _, value in passage.pieces]),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]

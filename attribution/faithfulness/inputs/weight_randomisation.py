"""Sanity check of input attribution: does it change when the weights are randomised?

An attribution that looks the same with random weights does not explain what the model has learned (Adebayo et al.,
Sanity checks for saliency maps, 2018). Each tensor's values are permuted, layer by layer from the top, which keeps
their distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.figures import mean_figure
from steerling_jax.attribution.faithfulness.inputs.perturbations import visible
from steerling_jax.attribution.faithfulness.partial_results import PartialResults
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.trace import Trace
from steerling_jax.evaluation.rank_correlation import rank_correlations
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.targets import TokenLogProbability
from steerling_jax.models.backbone import Params
from steerling_jax.progress import Progress

CASCADE = ("last layer", "upper half of the layers", "all layers", "all layers and embeddings")


def randomised_weights(
    bundle: Bundle,
    generations: Sequence[Generation],
    targets: int,
    key: jax.Array,
    partial: PartialResults,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rank correlations of integrated gradients with those of randomised weights, for each stage of the cascade."""
    L = bundle.config.n_layers
    firsts = {CASCADE[0]: L - 1, CASCADE[1]: L // 2, CASCADE[2]: 0, CASCADE[3]: 0}
    trained = partial.get_or_compute(
        "trained", lambda: [_visible_scores(bundle, one.trace, targets) for one in generations]
    )
    figures = []
    for number, (name, first) in enumerate(firsts.items()):

        def scores(number: int = number, first: int = first, embeddings: bool = name == CASCADE[3]) -> list:
            params = shuffled_weights(bundle.params, first, embeddings, jax.random.fold_in(key, number))
            other = dataclasses.replace(bundle, params=params)
            return [_visible_scores(other, one.trace, targets) for one in generations]

        means = []
        for before, after in zip(trained, partial.get_or_compute(f"randomised-{number}", scores)):
            pairs = [rank_correlation(np.array(a), np.array(b)) for a, b in zip(before, after)]
            means.append(np.nanmean(pairs) if np.isfinite(pairs).any() else np.nan)
        figures.append(mean_figure("rank correlation with randomised weights", name, means, key, "lower"))
        progress("inputs: randomised weights", number + 1, len(firsts))
    return figures


def _visible_scores(bundle: Bundle, trace: Trace, targets: int) -> list[np.ndarray]:
    """Attributions to the visible positions, one array per explained token."""
    result = attribute_inputs(bundle, trace, target=TokenLogProbability(), sample=targets, nodes=8)
    block, rows = bundle.config.diff_block_size, zip(result.target_orders.tolist(), result.target_positions.tolist())
    return [result.attributions[i][visible(trace, *at, block)] for i, at in enumerate(rows)]


def shuffled_weights(params: Params, first: int, embeddings: bool, key: jax.Array) -> Params:
    """Parameters in which every matrix of the layers from number `first` (from 0) on has its values permuted.

    With `embeddings` the embeddings and the output projection are permuted too. The gains of norms are unchanged.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    changed = []
    for number, (path, leaf) in enumerate(leaves):
        top, at = getattr(path[0], "key", None), jax.random.fold_in(key, number)
        if top == "blocks" and leaf.ndim >= 3:
            layers = leaf[first:]
            mixed = jax.vmap(jax.random.permutation)(jax.random.split(at, len(layers)), layers.reshape(len(layers), -1))
            leaf = jnp.concatenate([leaf[:first], mixed.reshape(layers.shape)])
        elif embeddings and top in ("tok_emb", "lm_head"):
            leaf = jax.random.permutation(at, leaf.reshape(-1)).reshape(leaf.shape)
        changed.append(leaf)
    return jax.tree_util.tree_unflatten(tree, changed)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of (m,) and (m,); NaN for fewer than three values."""
    return float("nan") if len(a) < 3 else float(rank_correlations(a[None], b[None])[0])

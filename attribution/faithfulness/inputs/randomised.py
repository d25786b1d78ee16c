"""Does input attribution depend on what was learned? The same tokens explained with weights in disorder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.figures import estimate
from steerling_jax.attribution.faithfulness.inputs.perturbed import visible
from steerling_jax.attribution.faithfulness.kept import PartialResults
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
    bundle: Bundle, made: Sequence[Generation], targets: int, key: jax.Array, tell: Progress, kept: PartialResults
) -> list[dict[str, Any]]:
    """Rank correlations of integrated gradients with those of weights that have forgotten, layer after layer."""
    L = bundle.config.n_layers
    firsts = {CASCADE[0]: L - 1, CASCADE[1]: L // 2, CASCADE[2]: 0, CASCADE[3]: 0}
    true = kept.get("trained", lambda: [_visible_scores(bundle, one.trace, targets) for one in made])
    found = []
    for number, (name, first) in enumerate(firsts.items()):

        def scores(number: int = number, first: int = first, embeddings: bool = name == CASCADE[3]) -> list:
            params = shuffled_weights(bundle.params, first, embeddings, jax.random.fold_in(key, number))
            other = dataclasses.replace(bundle, params=params)
            return [_visible_scores(other, one.trace, targets) for one in made]

        means = []
        for one, again in zip(true, kept.get(f"randomised-{number}", scores)):
            pairs = [spearman(np.array(a), np.array(b)) for a, b in zip(one, again)]
            means.append(np.nanmean(pairs) if np.isfinite(pairs).any() else np.nan)
        found.append(estimate("rank correlation with randomised weights", name, means, key, "lower"))
        tell("inputs: randomised weights", number + 1, len(firsts))
    return found


def _visible_scores(bundle: Bundle, trace: Trace, targets: int) -> list[np.ndarray]:
    """Attributions to the visible positions, an array a token."""
    found = attribute_inputs(bundle, trace, target=TokenLogProbability(), sample=targets, nodes=8)
    block, rows = bundle.config.diff_block_size, zip(found.target_orders.tolist(), found.target_positions.tolist())
    return [found.attributions[i][visible(trace, *at, block)] for i, at in enumerate(rows)]


def shuffled_weights(params: Params, first: int, embeddings: bool, key: jax.Array) -> Params:
    """Every tensor of the layers from number `first` (from 0) on with its values in another order, and where asked the
    embeddings and the output projection too. Norms' gains are left."""
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


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The rank correlation of (m,) and (m,); NaN for fewer than three values and for constant ones."""
    return float(rank_correlations(a[None], b[None])[0]) if len(a) >= 3 else float("nan")

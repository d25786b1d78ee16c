"""Faithfulness of input attribution: orders of importance against the effect of masking the tokens.

Masking is a natural perturbation for a diffusion model: canvases with masks are what it is trained on. The explained
quantity is the log-probability of a committed token in the snapshot in which it was committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.continuations import generate_continuations, heldout_openings
from steerling_jax.attribution.faithfulness.figures import mean_figure
from steerling_jax.attribution.faithfulness.inputs.perturbations import RANDOM, SOFT_DRAWS, later_blocks
from steerling_jax.attribution.faithfulness.inputs.prompt_figures import SHAPLEY, Figures, prompt_figures
from steerling_jax.attribution.faithfulness.inputs.settings import InputSettings
from steerling_jax.attribution.faithfulness.inputs.weight_randomisation import randomised_weights
from steerling_jax.attribution.faithfulness.partial_results import NOT_STORED, PartialResults
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress

_BETTER = {"comprehensiveness": "higher", "sufficiency": "lower", "π-soft": "higher", "targets": "higher"}
_NOTES = [
    "Normalised AOPC: 0 is the worst order of the features, 1 the best, both exact over all orders. "
    "A good order has a high comprehensiveness and a low sufficiency.",
    "π-soft: a token stays visible with a probability that is the rank of its score. Distances are Hellinger distances "
    "between the distributions over the vocabulary, as a share of the distance to a canvas with all tokens masked.",
    "Randomised weights: the values of each tensor are permuted. The figure is the rank correlation of the attribution "
    "with the attribution of the trained weights; near 0 if attribution depends on what was learned.",
]


def measure(
    bundle: Bundle,
    store: CorpusStore,
    settings: InputSettings | None = None,
    *,
    partial: PartialResults = NOT_STORED,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Figures of input attribution on continuations of held-out documents; intervals are over prompts.

    Raises `UserError` for a corpus of another tokenizer and for weights that are not finite.
    """
    settings = settings or InputSettings()
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    seed = settings.seed
    openings = heldout_openings(store, settings.prompts, settings.prompt_tokens, seed)
    config = GenerationConfig(max_new_tokens=settings.blocks * bundle.config.diff_block_size, seed=seed)
    generations = generate_continuations(bundle, openings, config, stage="inputs: writing", progress=progress)
    key = jax.random.key(seed)
    rows: list[Figures] = []
    for number, generation in enumerate(generations):
        draw = np.random.default_rng([seed, number])
        trace = generation.trace
        rows.append(
            partial.get_or_compute(
                f"prompt-{number:03d}",
                lambda trace=trace, draw=draw: prompt_figures(bundle, trace, settings, draw),
            )
        )
        progress("inputs: orders and soft masks", number + 1, len(generations))
    figures = _averages(rows, key)
    randomised = generations[: settings.randomised]
    figures += randomised_weights(bundle, randomised, settings.targets, key, partial, progress)
    figures += later_blocks(bundle, generations, np.random.default_rng([seed, 1]), key)
    return {
        "part": "inputs",
        "settings": {
            "seed": seed,
            "prompts": len(generations),
            "targets_a_prompt": settings.targets,
            "features": settings.features,
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": config.max_new_tokens,
            "soft_draws": SOFT_DRAWS,
            "quantity": "log-probability of the written token",
        },
        "figures": figures,
        "notes": _NOTES,
    }


def _averages(rows: Sequence[Figures], key: jax.Array) -> list[dict[str, Any]]:
    """Each figure's mean over prompts of the mean over a prompt's explained tokens."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    figures = []
    for name in sorted(names, key=lambda name: name.split("/")[0]):
        figure, of = name.split("/", 1)
        means = [np.mean(row[name]) if row.get(name) else np.nan for row in rows]
        better = next((way for word, way in _BETTER.items() if figure.startswith(word)), "")
        figures.append(mean_figure(figure, of, means, key, "" if of in (RANDOM, SHAPLEY) else better))
    return figures

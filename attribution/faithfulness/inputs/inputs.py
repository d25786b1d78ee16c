"""Is input attribution true? Orders of importance against what really happens when tokens are masked.

A mask is nothing strange to a diffusion model, so taking a token away leaves it on ground it knows. The quantity is the
log-probability of the token that was written, in the snapshot in which it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import estimate
from steerling_jax.attribution.faithfulness.inputs.orders import (
    comprehensiveness,
    limits,
    shapley,
    subsets,
    sufficiency,
)
from steerling_jax.attribution.faithfulness.inputs.perturbed import RANDOM, SOFT_DRAWS, later_blocks, soft, visible
from steerling_jax.attribution.faithfulness.inputs.randomised import randomised_weights
from steerling_jax.attribution.faithfulness.kept import NOTHING_KEPT, PartialResults
from steerling_jax.attribution.faithfulness.texts import continued, heldout_openings
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.perturbation import perturbed_values
from steerling_jax.explain.inputs.record import InputAttribution, Method
from steerling_jax.explain.inputs.targets import TokenLogit, TokenLogProbability
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress

IG = "integrated gradients"
OF_LOGIT = "integrated gradients of the logit (published target)"
METHODS: dict[str, Method] = {
    IG: "integrated-gradients",
    "gradient × input": "gradient-x-input",
    "leave one out": "leave-one-out",
    "embedding similarity (no attention)": "embedding-similarity",
    "recency (no model)": "recency",
}
SHAPLEY = "Shapley values (all subsets)"
PROMPT_TOKENS, BLOCKS = 16, 2
_ROWS = 64


def measure(
    bundle: Bundle,
    store: CorpusStore,
    *,
    tell: Progress = no_progress,
    kept: PartialResults = NOTHING_KEPT,
    seed: int = 0,
    prompts: int = 24,
    targets: int = 3,
    features: int = 8,
    randomised: int = 8,
    prompt_tokens: int = PROMPT_TOKENS,
    blocks: int = BLOCKS,
) -> dict[str, Any]:
    """Figures of input attribution on continuations of held-out documents; intervals are over prompts.

    targets: tokens explained of each prompt. features: the visible tokens are taken in so many runs, 2^features passes
    a target. randomised: prompts that are explained with randomised weights too. prompt_tokens, blocks: tokens of an
    opening, and diffusion blocks that continue it.
    """
    if prompts < 2 or targets < 1 or not 2 <= features <= 12:
        raise UserError(
            f"prompts {prompts}, targets {targets}, features {features}: give 2 or more, 1 or more, 2 to 12."
        )
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    openings = heldout_openings(store, prompts, prompt_tokens, seed)
    config = GenerationConfig(max_new_tokens=blocks * bundle.config.diff_block_size, seed=seed)
    made = continued(bundle, openings, config, stage="inputs: writing", tell=tell)
    key = jax.random.key(seed)
    rows: list[dict[str, list[float]]] = []
    for number, one in enumerate(made):
        draw = np.random.default_rng([seed, number])
        rows.append(
            kept.get(
                f"prompt-{number:03d}", lambda one=one, draw=draw: _explained(bundle, one, targets, features, draw)
            )
        )
        tell("inputs: orders and soft masks", number + 1, len(made))
    figures = _averages(rows, key)
    figures += randomised_weights(bundle, made[:randomised], targets, key, tell, kept)
    figures += later_blocks(bundle, made, np.random.default_rng([seed, 1]), key)
    return {
        "part": "inputs",
        "settings": {
            "seed": seed, "prompts": len(made), "targets_a_prompt": targets, "features": features,
            "prompt_tokens": prompt_tokens, "new_tokens": config.max_new_tokens, "soft_draws": SOFT_DRAWS,
            "quantity": "log-probability of the written token",
        },
        "figures": figures,
        "notes": [
            "Normalised AOPC: 0 is the worst order of the features, 1 the best, both exact over all orders. "
            "Of an order that explains well, comprehensiveness is high and sufficiency low.",
            "π-soft: tokens are kept with a probability that is the rank of their score, and the distance is "
            "Hellinger's between the two distributions over the vocabulary, as a share of the distance to all masked.",
            "Randomised weights: each tensor's values in another order. Rank correlation of the attribution with the "
            "one of the trained weights; near 0 where attribution depends on what was learned.",
        ],
    }  # fmt: skip


def _explained(
    bundle: Bundle, made: Generation, targets: int, features: int, draw: np.random.Generator
) -> dict[str, list[float]]:
    """One prompt's figures, "figure/method" to a value for each explained token."""
    trace, found = made.trace, dict[str, list[float]]()
    scored = _attributions(bundle, trace, targets)
    first = scored[IG]
    for row, position in enumerate(first.target_positions.tolist()):
        seen = visible(trace, int(first.target_orders[row]), position, bundle.config.diff_block_size)
        runs = np.array_split(seen, min(features, len(seen)))
        if len(runs) < 2:
            continue
        kept = subsets(len(runs))
        keep = np.zeros((1, len(kept), len(trace.tokens)), np.float32)
        for feature, run in enumerate(runs):
            keep[0][:, run] = kept[:, feature : feature + 1]
        values = perturbed_values(
            bundle, trace, keep, target=TokenLogProbability(), positions=[position], batch_size=_ROWS
        )[0].astype(np.float64)
        ends = limits(values)
        if ends.high - ends.low < 1e-6:
            continue
        scores = {name: a.attributions[row] for name, a in scored.items()}
        by_run = {name: np.array([score[run].sum() for run in runs]) for name, score in scores.items()}
        by_run[SHAPLEY] = shapley(values)
        for name, score in by_run.items():
            order = np.argsort(-score, kind="stable")
            for figure, area in (("comprehensiveness", comprehensiveness), ("sufficiency", sufficiency)):
                share = (area(values, order) - ends.low) / (ends.high - ends.low)
                found.setdefault(f"{figure}, normalised/{name}", []).append(share)
                if name == IG:
                    found.setdefault(f"{figure}, nats/{name}", []).append(area(values, order))
        for figure in ("comprehensiveness", "sufficiency"):
            middle = (ends.mean - ends.low) / (ends.high - ends.low)
            found.setdefault(f"{figure}, normalised/{RANDOM}", []).append(middle)
        found.setdefault("comprehensiveness, nats/best order", []).append(ends.high)
        found.setdefault("comprehensiveness, nats/worst order", []).append(ends.low)
        for name, value in soft(bundle, trace, int(first.target_orders[row]), position, seen, scores, draw).items():
            found.setdefault(name, []).append(value)
    found["targets whose attribution adds up/" + IG] = first.converged.astype(float).tolist()
    return found


def _attributions(bundle: Bundle, trace: Trace, targets: int) -> dict[str, InputAttribution]:
    """The same tokens explained by every method."""
    found = {
        name: attribute_inputs(bundle, trace, method=method, target=TokenLogProbability(), sample=targets)
        for name, method in METHODS.items()
    }
    return found | {OF_LOGIT: attribute_inputs(bundle, trace, target=TokenLogit(), sample=targets)}


def _averages(rows: Sequence[dict[str, list[float]]], key: jax.Array) -> list[dict[str, Any]]:
    """Of each figure the mean over prompts of the mean over a prompt's tokens."""
    better = {"comprehensiveness": "higher", "sufficiency": "lower", "π-soft": "higher", "targets": "higher"}
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = []
    for name in sorted(names, key=lambda name: name.split("/")[0]):
        figure, of = name.split("/", 1)
        means = [np.mean(row[name]) if row.get(name) else np.nan for row in rows]
        wanted = next((way for word, way in better.items() if figure.startswith(word)), "")
        found.append(estimate(figure, of, means, key, "" if of in (RANDOM, SHAPLEY) else wanted))
    return found

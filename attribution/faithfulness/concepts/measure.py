"""Faithfulness of concepts: detection of labels, worth of each part, promoted tokens, and effects of removal."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.concepts.detection import detection_figures, overlap_figures
from steerling_jax.attribution.faithfulness.concepts.effects import TOP, effect_figures
from steerling_jax.attribution.faithfulness.concepts.equal_mass import equal_mass_figures
from steerling_jax.attribution.faithfulness.concepts.settings import ConceptSettings
from steerling_jax.attribution.faithfulness.figures import ratio_figure
from steerling_jax.attribution.faithfulness.partial_results import NOT_STORED, PartialResults
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.concepts.heads import head_spec
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.evaluation.bound import SHARES, VARIANTS
from steerling_jax.evaluation.heldout_figures import POSITIVES, batch_sums
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress

_NOTES = [
    "Detection: evidence over the masked tokens of a chunk against its labels, macro over concepts with enough "
    "positives; intervals over chunks. The probes read words only, trained on the training split's labels.",
    "Removed in the head, frozen: nothing else changes, so the logit falls by exactly the share; published: the clamp "
    "of the published package, which also drops epsilon (known) or lets epsilon fill the gap (discovered); in the "
    "pass: the direction is projected out of all positions from the middle layer on.",
    "Net shares are of the true token's logit, over all masked positions.",
    "Shuffled: the shares of each token's concepts in another order.",
    "A share is of the raw logit, a centred share of the logit minus the mean of all logits, and a log-probability "
    "share of the logit minus its mean under the model's own distribution. All are compared for the same pairs of a "
    f"token and a concept: the {TOP} concepts of each head with the largest centred share of a chunk.",
    "Equal mass: the listed known concepts of each masked position are removed, or as many of its discovered ones, "
    "neighbours in the order of their sizes, whose sizes add up to nearly the same. A concept's size at a position is "
    "the standard deviation over the vocabulary of the logits that it adds.",
]


def measure(
    bundle: Bundle,
    store: CorpusStore,
    settings: ConceptSettings | None = None,
    *,
    partial: PartialResults = NOT_STORED,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Figures of the concepts.

    Raises `UserError` for a bare backbone, a corpus of another tokenizer and weights that are not finite.
    """
    settings = settings or ConceptSettings()
    head_spec(bundle.config, "known")
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    key = jax.random.key(settings.seed)
    level, seq_len = settings.level, min(settings.seq_len, bundle.config.block_size)
    held = read_heldout(store, seq_len, most_tokens=settings.most_tokens)
    detection = partial.get_or_compute(
        "detection", lambda: detection_figures(bundle, held, store, level, key, progress)
    )
    figures = detection["figures"]
    figures += partial.get_or_compute("worth", lambda: _worth(bundle, held, settings.seed, key, progress))
    figures += partial.get_or_compute(
        "equal-mass", lambda: equal_mass_figures(bundle, held, settings.seed, key, progress)
    )
    figures += effect_figures(bundle, store, settings, key, partial, progress)
    figures += overlap_figures(bundle, store, key)
    return {
        "part": "concepts",
        "settings": {
            "seed": settings.seed,
            "level": level,
            "seq_len": settings.seq_len,
            "heldout_tokens": held.token_count,
            "chunks": detection["chunks"],
            "least_positives": POSITIVES,
            "prompts": settings.prompts,
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": settings.blocks * bundle.config.diff_block_size,
            "concepts_a_chunk": TOP,
        },
        "figures": figures,
        "notes": _NOTES,
    }


def _worth(bundle: Bundle, held: HeldOut, seed: int, key: jax.Array, progress: Progress) -> list[dict[str, Any]]:
    """The loss without each part, and net shares of the logits; units are sequences."""
    sums = list(batch_sums(bundle.params, held, bundle.config, bundle.compute, size=1, seed=seed, progress=progress))
    column = {name: np.array([s[name] for s in sums]) for name in sums[0]}
    rows = [ratio_figure("loss, nats a token", "everything", column["full"], column["tokens"], key, "lower")]
    for name in VARIANTS[1:]:
        part = name.removeprefix("without_") + " removed"
        increase = column[name] - column["full"]
        rows.append(ratio_figure("loss more, nats a token", part, increase, column["tokens"], key))
    figure = "net share of logit mass"
    for name in SHARES:
        rows.append(ratio_figure(figure, name, column[f"share_{name}"], column["masked"], key))
    concepts = column["share_known"] + column["share_discovered"]
    rows.append(ratio_figure(figure, "known and discovered", concepts, column["masked"], key, "higher"))
    return rows

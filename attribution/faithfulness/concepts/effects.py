"""Predicted and observed effects of concepts, in continuations of held-out texts.

A concept's share of a logit predicts how far the logit falls when the concept is removed; a gradient predicts how far
another concept's logit changes when a concept is injected. Both are compared with what the model does. The effects of
the same removals are predicted by shares of raw logits, of centred logits and of log-probabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.concepts.settings import ConceptSettings
from steerling_jax.attribution.faithfulness.continuations import generate_continuations, heldout_openings
from steerling_jax.attribution.faithfulness.figures import figure_entry
from steerling_jax.attribution.faithfulness.partial_results import PartialResults
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import HEADS
from steerling_jax.concepts.heads import concept_embeddings
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.explain.agreement import EffectAgreement, agreement, shuffled_concepts
from steerling_jax.explain.concept_gradients import SourceConcept, TargetConcept, concept_gradients
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.explain.effects import REMOVALS, ConceptEffects, concept_effects
from steerling_jax.explain.logit_shares import REFERENCES, Reference
from steerling_jax.explain.ranking import chunk_spans, rank_chunk
from steerling_jax.inference import forward
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress

TOP = 3  # concepts of each head whose effect is measured in a chunk, of largest share of the centred logits
SHOWN = 5  # discovered concepts of a chunk that `steerling demo` shows
# Injected multiples of a concept's embedding: a small one, for which the gradient is nearly exact, and the whole one.
STRENGTHS = (0.02, 1.0)
_MIN_EFFECT = 1e-4  # logits; smaller effects are rounding, which has no meaningful correlation
_DRAWS = 200  # of the bootstrap
# By reference: what its shares are called, and the quantities whose change they are compared with.
_PREDICTIONS: dict[Reference, tuple[str, tuple[str, ...]]] = {
    "raw": ("share", ("logit", "log_probability")),
    "vocabulary": ("centred share", ("centred_logit", "log_probability")),
    "model": ("log-probability share", ("log_probability",)),
}
_REMOVED = {
    "frozen": "removed in the head, frozen",
    "published": "removed in the head, published",
    "pass": "in the pass",
}


def effect_figures(
    bundle: Bundle,
    store: CorpusStore,
    settings: ConceptSettings,
    key: jax.Array,
    partial: PartialResults,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Agreement of shares with observed effects, and of gradients with observed injections; units are prompts."""
    seed = settings.seed
    openings = heldout_openings(store, settings.prompts, settings.prompt_tokens, seed)
    config = GenerationConfig(max_new_tokens=settings.blocks * bundle.config.diff_block_size, seed=seed)
    generations = generate_continuations(bundle, openings, config, stage="concepts: writing", progress=progress)
    observations = []
    for number, one in enumerate(generations):
        draw = np.random.default_rng([seed, number])
        raw = partial.get_or_compute(
            f"centred-effects-{number:03d}", lambda one=one, draw=draw: _observations(bundle, one, draw)
        )
        if raw:
            observations.append(raw)
        progress("concepts: effects", number + 1, len(generations))
    rows = []
    for head in [head for head in HEADS if bundle.concepts.count(head)]:
        for reference, (share, quantities) in _PREDICTIONS.items():
            tokens = [_effects_from_json(raw[head], raw["direct"][head][reference]) for raw in observations]
            rows += _agreements(share, quantities, f"{head}, tokens", tokens, key)
            chunks = [chunk for one, raw in zip(tokens, observations) for chunk in one.summed([raw["span"]])]
            predicted, observed = _columns(chunks, quantities[0], "pass")
            rows += _agreed(f"{share} of a chunk, in the pass ({head})", predicted, observed, key)
    rows += _everywhere(observations, key)
    responses = [[np.array(values, np.float64) for values in raw["responses"]] for raw in observations]
    for number, strength in enumerate(STRENGTHS):
        predicted = [p * strength for p, *_ in responses]
        observed = [r[1 + number] for r in responses]
        rows += _agreed(f"concept → concept, {strength:g} embeddings injected", predicted, observed, key)
    return rows


def _observations(bundle: Bundle, generation: Generation, draw: np.random.Generator) -> dict[str, Any]:
    """Span, effects by head, and responses to injections for the longest generated chunk; empty without a chunk."""
    trace, config = generation.trace, bundle.config
    spans = chunk_spans(trace, trace.prompt_length, config.endofchunk_token_id, config.eot_id)
    if not spans:
        return {}
    shares = {reference: concept_contributions(bundle, trace, reference=reference) for reference in REFERENCES}
    start, end = max(spans, key=lambda span: span[1] - span[0])
    ranked = rank_chunk(shares["vocabulary"], start, end).entries
    observations: dict[str, Any] = {"span": (start, end), "direct": {}}
    for head in HEADS:
        if bundle.concepts.count(head):
            ids = [share.concept_id for share in ranked if share.type == head][:TOP]
            effects = concept_effects(bundle, trace, shares["raw"], ids, head=head, start=start, end=end)
            observations[head] = effects
            observations["direct"][head] = {name: effects.predicted_by(of).direct for name, of in shares.items()}
    observations["shown"] = {
        name: [[e.concept_id for e in rank_chunk(of, *span) if e.type == "discovered"][:SHOWN] for span in spans]
        for name, of in shares.items()
    }
    ids = [share.concept_id for share in ranked if share.type == "known"][:TOP]
    return observations | {"responses": _responses(bundle, generation, ids, draw)}


def _everywhere(observations: Sequence[dict[str, Any]], key: jax.Array) -> list[dict[str, Any]]:
    """How often the discovered concept that is shown most often is shown: a concept that appears in the list of nearly
    every chunk says little about any of them."""
    rows = []
    for reference, (share, _) in _PREDICTIONS.items():
        shown = [raw["shown"][reference] for raw in observations]

        def largest(texts: np.ndarray, shown: Sequence[list[list[int]]] = shown) -> float:
            chunks = [chunk for i in texts for chunk in shown[i]]
            counts = Counter(concept for chunk in chunks for concept in chunk)
            return max(counts.values(), default=0) / max(len(chunks), 1)

        total = sum(map(len, shown))
        figure = f"part of {total} chunks whose top {SHOWN} have the same discovered concept"
        rows.append(figure_entry(figure, f"by {share}", bootstrap(largest, len(shown), key, _DRAWS), "lower"))
    return rows


def _effects_from_json(raw: dict[str, Any], direct: Sequence[float]) -> ConceptEffects:
    """Effects from their JSON form, predicted by `direct` (p,)."""
    fields: dict[str, Any] = {name: np.array(raw[name], np.int32) for name in ("orders", "positions", "concept_ids")}
    fields |= {
        name: {removal: np.array(values, np.float32) for removal, values in raw[name].items()}
        for name in ("logit", "log_probability", "centred_logit")
    }
    return ConceptEffects(head=raw["head"], direct=np.array(direct, np.float32), **fields)


def _agreements(
    share: str, quantities: Sequence[str], subject: str, effects: Sequence[ConceptEffects], key: jax.Array
) -> list[dict[str, Any]]:
    """The agreement of shares with the change of each quantity under each removal, and the control."""
    rows = []
    names = {quantity: quantity.replace("_p", "-p").replace("_", " ") for quantity in quantities}
    for removal in REMOVALS:
        for quantity, name in names.items():
            predicted, observed = _columns(effects, quantity, removal)
            rows += _agreed(f"{share} and {name}, {_REMOVED[removal]} ({subject})", predicted, observed, key)
    for number, (quantity, name) in enumerate(names.items()):
        _, observed = _columns(effects, quantity, "pass")
        shuffled = [shuffled_concepts(e, jax.random.fold_in(key, i)) for i, e in enumerate(effects)]
        label = f"shuffled {share}s and {name}, in the pass ({subject})"
        rows += _agreed(label, shuffled, observed, jax.random.fold_in(key, number))
    return rows


def _columns(
    effects: Sequence[ConceptEffects], quantity: str, removal: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [e.direct for e in effects], [getattr(e, quantity)[removal] for e in effects]


def _agreed(
    label: str, predicted: Sequence[np.ndarray], observed: Sequence[np.ndarray], key: jax.Array
) -> list[dict[str, Any]]:
    """Correlation, share of equal signs and slope over all pairs of predicted and observed values.

    The bootstrap draws prompts, because values of one text are not independent.
    """

    def agreement_of(rows: np.ndarray) -> EffectAgreement:
        return agreement(np.concatenate([predicted[i] for i in rows]), np.concatenate([observed[i] for i in rows]))

    if max(float(np.abs(o).max(initial=0.0)) for o in observed) < _MIN_EFFECT:
        mean = bootstrap(lambda rows: float(np.mean(np.concatenate([observed[i] for i in rows]))), len(observed), key)
        return [figure_entry("mean effect (nothing else to compare)", label, mean)]
    return [
        figure_entry(
            name,
            label,
            bootstrap(lambda rows, field=field: getattr(agreement_of(rows), field), len(predicted), key, _DRAWS),
        )
        for name, field in (("correlation", "correlation"), ("equal signs", "sign"), ("slope", "slope"))
    ]


def _responses(
    bundle: Bundle, generation: Generation, concepts: Sequence[int], draw: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Responses of `concepts` to injections of random known concepts at the masked positions, as steering injects.

    The first array has the gradients (n·m,) of n concepts' logits to m injections, the others the changes that were
    observed at each of `STRENGTHS`.
    """
    trace, config = generation.trace, bundle.config
    commit = trace.commits[len(trace.commits) // 2]
    canvas = trace.snapshot(commit.step)
    masked, position, layer = canvas == trace.mask_id, commit.positions[0], config.n_layers // 2
    sources = draw.choice(bundle.concepts.known, min(2, bundle.concepts.known), replace=False).tolist()
    gradients = concept_gradients(
        bundle,
        canvas,
        [TargetConcept(i, position) for i in concepts],
        [SourceConcept(i) for i in sources],
        batch_size=TOP,
    )
    vectors = np.asarray(
        concept_embeddings(
            bundle.params, jnp.asarray(sources, jnp.int32), head="known", config=config, compute=bundle.compute
        )
    )
    observed = []
    for strength in STRENGTHS:
        changes = np.zeros((len(concepts), len(sources)))
        for m, vector in enumerate(vectors):
            out = forward(
                bundle,
                canvas,
                dense=True,
                injection=vector[None] * masked[:, None],
                inject_layer=layer,
                inject_alpha=strength,
            )
            assert out.decomposition.known_logits is not None
            now = np.asarray(out.decomposition.known_logits[0, position])[list(concepts)]
            changes[:, m] = now - gradients.logits
        observed.append(changes.reshape(-1))
    return gradients.injected(layer, masked).reshape(-1), *observed

"""What a concept's share foretells and what removing or injecting it does, over continuations of held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.figures import entry
from steerling_jax.attribution.faithfulness.kept import PartialResults
from steerling_jax.attribution.faithfulness.texts import continued, heldout_openings
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import HEADS
from steerling_jax.concepts.heads import concept_embeddings
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.explain.agreement import EffectAgreement, agreement, shuffled_concepts
from steerling_jax.explain.concept_gradients import SourceConcept, TargetConcept, concept_gradients
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.explain.effects import REMOVALS, ConceptEffects, concept_effects
from steerling_jax.explain.ranking import chunk_spans, rank_chunk
from steerling_jax.inference import forward
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress

PROMPT_TOKENS, BLOCKS = 16, 4
TOP = 3  # concepts of each head whose effect is measured in a chunk
STRENGTHS = (0.02, 1.0)  # multiples of a concept's embedding that are injected
_DRAWS = 200


def effects(
    bundle: Bundle,
    store: CorpusStore,
    prompts: int,
    prompt_tokens: int,
    blocks: int,
    seed: int,
    key: jax.Array,
    tell: Progress,
    kept: PartialResults,
) -> list[dict[str, Any]]:
    """Shares against observed effects, and gradients against real injections, over `prompts` continuations."""
    openings = heldout_openings(store, prompts, prompt_tokens, seed)
    config = GenerationConfig(max_new_tokens=blocks * bundle.config.diff_block_size, seed=seed)
    made = continued(bundle, openings, config, stage="concepts: writing", tell=tell)
    found = []
    for number, one in enumerate(made):
        draw = np.random.default_rng([seed, number])
        raw = kept.get(f"effects-{number:03d}", lambda one=one, draw=draw: _observed(bundle, one, draw))
        if raw:
            found.append(raw)
        tell("concepts: effects", number + 1, len(made))
    rows = []
    for head in [head for head in HEADS if bundle.concepts.count(head)]:
        tokens = [_effects_of(raw[head]) for raw in found]
        rows += _agreements(f"{head}, tokens", tokens, key)
        chunks = [chunk for one, raw in zip(tokens, found) for chunk in one.summed([raw["span"]])]
        predicted, observed = _columns(chunks, "logit", "pass")
        rows += _agreed(f"share of a chunk, in the pass ({head})", predicted, observed, key)
    responses = [[np.array(values, np.float64) for values in raw["responses"]] for raw in found]
    for number, strength in enumerate(STRENGTHS):
        predicted = [p * strength for p, *_ in responses]
        observed = [r[1 + number] for r in responses]
        rows += _agreed(f"concept → concept, {strength:g} embeddings injected", predicted, observed, key)
    return rows


def _observed(bundle: Bundle, made: Generation, draw: np.random.Generator) -> dict[str, Any]:
    """Of the longest chunk that was written: its span, the effects by head, the responses; nothing where there is no
    chunk."""
    trace, config = made.trace, bundle.config
    spans = chunk_spans(trace, trace.prompt_length, config.endofchunk_token_id, config.eot_id)
    if not spans:
        return {}
    shares = concept_contributions(bundle, trace)
    start, end = max(spans, key=lambda span: span[1] - span[0])
    ranked = rank_chunk(shares, start, end).entries
    found: dict[str, Any] = {"span": (start, end)}
    for head in HEADS:
        if bundle.concepts.count(head):
            ids = [share.concept_id for share in ranked if share.type == head][:TOP]
            found[head] = concept_effects(bundle, trace, shares, ids, head=head, start=start, end=end)
    ids = [share.concept_id for share in ranked if share.type == "known"][:TOP]
    return found | {"responses": _responses(bundle, made, ids, draw)}


def _effects_of(raw: dict[str, Any]) -> ConceptEffects:
    """From JSON."""
    fields: dict[str, Any] = {name: np.array(raw[name], np.int32) for name in ("orders", "positions", "concept_ids")}
    fields |= {
        name: {removal: np.array(values, np.float32) for removal, values in raw[name].items()}
        for name in ("logit", "log_probability")
    }
    return ConceptEffects(head=raw["head"], direct=np.array(raw["direct"], np.float32), **fields)


def _agreements(what: str, found: Sequence[ConceptEffects], key: jax.Array) -> list[dict[str, Any]]:
    rows = []
    for removal in REMOVALS:
        for quantity in ("logit", "log_probability"):
            predicted, observed = _columns(found, quantity, removal)
            label = f"share and {quantity.replace('_', '-')}, {_REMOVED[removal]} ({what})"
            rows += _agreed(label, predicted, observed, key)
    for number, quantity in enumerate(("logit", "log_probability")):
        _, observed = _columns(found, quantity, "pass")
        shuffled = [shuffled_concepts(e, jax.random.fold_in(key, i)) for i, e in enumerate(found)]
        label = f"shuffled shares and {quantity.replace('_', '-')}, in the pass ({what})"
        rows += _agreed(label, shuffled, observed, jax.random.fold_in(key, number))
    return rows


_REMOVED = {
    "frozen": "removed in the head, frozen", "published": "removed in the head, published", "pass": "in the pass"
}  # fmt: skip


def _columns(found: Sequence[ConceptEffects], quantity: str, removal: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [e.direct for e in found], [getattr(e, quantity)[removal] for e in found]


def _agreed(
    label: str, predicted: Sequence[np.ndarray], observed: Sequence[np.ndarray], key: jax.Array
) -> list[dict[str, Any]]:
    """Correlation, share of equal signs and slope over all pairs; prompts are drawn again."""

    def of(rows: np.ndarray) -> EffectAgreement:
        return agreement(np.concatenate([predicted[i] for i in rows]), np.concatenate([observed[i] for i in rows]))

    if max(float(np.abs(o).max(initial=0.0)) for o in observed) < 1e-4:  # rounding has no correlation
        none = bootstrap(lambda rows: float(np.mean(np.concatenate([observed[i] for i in rows]))), len(observed), key)
        return [entry("mean effect (nothing else to compare)", label, none)]
    return [
        entry(name, label, bootstrap(lambda rows, field=field: getattr(of(rows), field), len(predicted), key, _DRAWS))
        for name, field in (("correlation", "correlation"), ("equal signs", "sign"), ("slope", "slope"))
    ]


def _responses(
    bundle: Bundle, made: Generation, concepts: Sequence[int], draw: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Gradients (n·m,) of the logits of `concepts` to an injection of random known ones at masked positions, as
    steering does it, then the changes observed at each of `STRENGTHS`."""
    trace, config = made.trace, bundle.config
    commit = trace.commits[len(trace.commits) // 2]
    canvas = trace.snapshot(commit.step)
    masked, position, layer = canvas == trace.mask_id, commit.positions[0], config.n_layers // 2
    sources = draw.choice(bundle.concepts.known, min(2, bundle.concepts.known), replace=False).tolist()
    found = concept_gradients(
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
            changes[:, m] = now - found.logits
        observed.append(changes.reshape(-1))
    return found.injected(layer, masked).reshape(-1), *observed

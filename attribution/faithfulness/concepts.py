"""Are the concepts true? Detection against labels, what each part is worth, and effects foretold and observed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.api import Bundle
from steerling_jax.catalogue import HEADS, Head
from steerling_jax.chunk_ranking import chunk_spans, rank_chunk
from steerling_jax.concept_effects import (
    REMOVALS,
    Agreement,
    ConceptEffects,
    agreement,
    concept_effects,
    shuffled_concepts,
)
from steerling_jax.concept_gradients import Source, Target, concept_gradients
from steerling_jax.concept_heads import concept_embeddings, head_spec
from steerling_jax.contributions import concept_contributions
from steerling_jax.detection import auc
from steerling_jax.errors import UserError
from steerling_jax.evaluation import SHARES, VARIANTS
from steerling_jax.generation import Generation
from steerling_jax.generation_config import GenerationConfig
from steerling_jax.heldout_figures import POSITIVES, Detected, batch_sums, detect, probe_scores
from steerling_jax.inference import check_weights, forward
from steerling_jax.intervals import bootstrap
from steerling_jax.io.corpus import CorpusStore
from steerling_jax.io.heldout import read_heldout
from steerling_jax.io.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.lift import lifted_tokens
from steerling_jax.promoted_tokens import promoted_tokens

from .figures import entry, estimate, ratio
from .texts import Progress, continued, heldout_openings

PROMPT_TOKENS, BLOCKS = 16, 4
TOP = 3  # concepts of each head whose effect is measured in a chunk
PROMOTED = 50  # tokens compared with the lifted ones
TRAIN_CHUNKS = 20_000  # that lift is counted in
STRENGTHS = (0.02, 1.0)  # multiples of a concept's embedding that are injected
_DRAWS = 200


def measure(
    bundle: Bundle, store: CorpusStore, *, tell: Progress = lambda *_: None, seed: int = 0, prompts: int = 16,
    level: float = 0.5, seq_len: int = 256, most_tokens: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of the concepts. level: share of tokens masked for detection. most_tokens: of the held-out split, None
    for all. Raises `UserError` for a bare backbone and a corpus of another tokenizer."""
    head_spec(bundle.config, "known")
    if not 0 < level <= 1:
        raise UserError(f"level is {level:g}, but the share of masked tokens is above 0 and at most 1.")
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    key = jax.random.key(seed)
    held = read_heldout(store, min(seq_len, bundle.config.block_size), most_tokens=most_tokens)
    found = detect(bundle.params, held, store, bundle.config, bundle.compute, level, progress=tell)
    figures = _detection(found, store, level, key, tell)
    figures += _worth(bundle, held, seed, key, tell)
    figures += _effects(bundle, store, prompts, seed, key, tell)
    figures += _overlap(bundle, store, key)
    return {
        "part": "concepts",
        "settings": {
            "seed": seed, "level": level, "seq_len": seq_len, "heldout_tokens": held.token_count,
            "chunks": len(found.chunk), "least_positives": POSITIVES, "prompts": prompts,
            "new_tokens": BLOCKS * bundle.config.diff_block_size, "concepts_a_chunk": TOP,
        },
        "figures": figures,
        "notes": [
            "Detection: evidence over the masked tokens of a chunk against its labels, macro over concepts with enough "
            "positives; intervals over chunks. The probes read words only, trained on the training split's labels.",
            "Removed in the head, frozen: nothing else changes, so the logit falls by the share exactly; published: "
            "the clamp of the published package, which also drops epsilon (known) or lets epsilon refill the gap "
            "(discovered); in the pass: the direction is projected out of all positions from half the layers on.",
            "Shuffled: the shares of each token's concepts in another order.",
        ],
    }  # fmt: skip


def _detection(
    found: Detected, store: CorpusStore, level: float, key: jax.Array, tell: Progress
) -> list[dict[str, Any]]:
    counts = found.positive.sum(axis=0)
    chosen = np.flatnonzero((counts >= POSITIVES) & (counts < len(found.positive)))
    if not chosen.size:
        return []
    scorers = {"the model": found.evidence} | probe_scores(found, store, level, tell)
    scorers["random"] = np.asarray(jax.random.uniform(key, found.evidence.shape))
    labels = {"probe_whole_text": "bag-of-words probe, whole text", "probe_visible_text": "the same, visible text"}
    figure = f"detection AUC, macro of {len(chosen)} concepts, level {level:g}"
    rows = []
    for name, scores in scorers.items():

        def macro(at: np.ndarray, scores: np.ndarray = scores) -> float:
            areas = [
                auc(scores[at, c], found.positive[at, c]) for c in chosen if 0 < found.positive[at, c].sum() < len(at)
            ]
            return float(np.mean(areas)) if areas else math.nan

        estimated = bootstrap(macro, len(found.positive), key, _DRAWS // 4)
        rows.append(entry(figure, labels.get(name, name), estimated, "" if name == "random" else "higher"))
        tell("concepts: detection", len(rows), len(scorers))
    return rows


def _worth(bundle: Bundle, held: Any, seed: int, key: jax.Array, tell: Progress) -> list[dict[str, Any]]:
    """Loss without each part and net shares of the logits, sequence by sequence."""
    sums = list(batch_sums(bundle.params, held, bundle.config, bundle.compute, size=1, seed=seed, progress=tell))
    column = {name: np.array([s[name] for s in sums]) for name in sums[0]}
    rows = [ratio("loss, nats a token", "everything", column["full"], column["tokens"], key, "lower")]
    for name in VARIANTS[1:]:
        what = name.removeprefix("without_") + " removed"
        rows.append(ratio("loss more, nats a token", what, column[name] - column["full"], column["tokens"], key))
    for name in SHARES:
        rows.append(ratio("net share of logit mass", name, column[f"share_{name}"], column["masked"], key))
    concepts = column["share_known"] + column["share_discovered"]
    rows.append(ratio("net share of logit mass", "known and discovered", concepts, column["masked"], key, "higher"))
    return rows


def _effects(
    bundle: Bundle, store: CorpusStore, prompts: int, seed: int, key: jax.Array, tell: Progress
) -> list[dict[str, Any]]:
    """Shares against observed effects, and gradients against real injections, over `prompts` continuations."""
    openings = heldout_openings(store, prompts, PROMPT_TOKENS, seed)
    config = GenerationConfig(max_new_tokens=BLOCKS * bundle.config.diff_block_size, seed=seed)
    made = continued(bundle, openings, config, stage="concepts: writing", tell=tell)
    heads: list[Head] = [head for head in HEADS if bundle.concepts.count(head)]
    by_head: dict[Head, list[tuple[ConceptEffects, list[ConceptEffects]]]] = {head: [] for head in heads}
    responses = []
    for number, one in enumerate(made):
        shares = concept_contributions(bundle, one.trace)
        spans = chunk_spans(one.trace, one.trace.prompt_length, bundle.config.endofchunk_token_id, bundle.config.eot_id)
        start, end = max(spans, key=lambda span: span[1] - span[0])
        ranked = rank_chunk(shares, start, end).entries
        for head in heads:
            ids = [share.concept_id for share in ranked if share.type == head][:TOP]
            effects = concept_effects(bundle, one.trace, shares, ids, head=head, start=start, end=end)
            by_head[head].append((effects, effects.summed([(start, end)])))
        ids = [share.concept_id for share in ranked if share.type == "known"][:TOP]
        responses.append(_responses(bundle, one, ids, np.random.default_rng([seed, number])))
        tell("concepts: effects", number + 1, len(made))
    rows = []
    for head, found in by_head.items():
        tokens = [effects for effects, _ in found]
        rows += _agreements(f"{head}, tokens", tokens, key)
        chunks = [chunk for _, several in found for chunk in several]
        predicted, observed = _columns(chunks, "logit", "pass")
        rows += _agreed(f"share of a chunk, in the pass ({head})", predicted, observed, key)
    for number, strength in enumerate(STRENGTHS):
        predicted = [p * strength for p, *_ in responses]
        observed = [r[1 + number] for r in responses]
        rows += _agreed(f"concept → concept, {strength:g} embeddings injected", predicted, observed, key)
    return rows


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

    def of(rows: np.ndarray) -> Agreement:
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
    sources = draw.choice(bundle.concepts.known, 2, replace=False).tolist()
    found = concept_gradients(
        bundle, canvas, [Target(i, position) for i in concepts], [Source(i) for i in sources], batch_size=TOP
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
                bundle, canvas, dense=True, injection=vector[None] * masked[:, None], inject_layer=layer,
                inject_alpha=strength,
            )  # fmt: skip
            assert out.decomposition.known_logits is not None
            now = np.asarray(out.decomposition.known_logits[0, position])[list(concepts)]
            changes[:, m] = now - found.logits
        observed.append(changes.reshape(-1))
    return found.injected(layer, masked).reshape(-1), *observed


def _overlap(bundle: Bundle, store: CorpusStore, key: jax.Array) -> list[dict[str, Any]]:
    """Of the tokens a known concept promotes most, the share that the labels lift, for concepts with enough chunks."""
    first, last = store.chunks_between(*store.split("train"))
    last = min(last, first + TRAIN_CHUNKS)
    positive = chunk_positives(store, first, last, bundle.concepts.known)
    chosen = np.flatnonzero(positive.sum(axis=0) >= POSITIVES)
    if len(chosen) < 2:
        return []
    special = store.special.names()
    lifted = lifted_tokens(
        chunk_bags(store, first, last), positive[:, chosen], store.vocab_size, support=5, least=2.0, most=PROMOTED,
        without=special,
    )  # fmt: skip
    promoted, _ = promoted_tokens(
        bundle.params, chosen.tolist(), PROMOTED, head="known", config=bundle.config, compute=bundle.compute
    )
    order = np.asarray(jax.random.permutation(key, len(chosen)))
    other = np.empty(len(chosen), int)
    other[order] = np.roll(order, 1)  # no concept keeps its own

    def share(i: int, j: int) -> float:
        tokens = lifted[i].tokens
        return float(np.isin(tokens, promoted[j]).mean()) if len(tokens) else math.nan

    figure = f"lifted tokens among the {PROMOTED} promoted ones, of {len(chosen)} concepts"
    own, shuffled = ([share(i, j) for i, j in enumerate(ids)] for ids in (range(len(chosen)), other))
    return [estimate(figure, "its own", own, key, "higher"), estimate(figure, "shuffled concepts", shuffled, key)]

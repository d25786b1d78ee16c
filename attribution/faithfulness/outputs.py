"""What attribution says of bad outputs: texts that repeat themselves, make no sense, or begin far from the corpus.

Every set is written by the model and chosen by a stated rule, never by eye. For each figure of attribution: its mean in
each set, and how well it alone tells a bad set from good texts, beside figures that need no attribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import entry, estimate
from steerling_jax.attribution.faithfulness.kept import NOTHING_KEPT, PartialResults
from steerling_jax.attribution.faithfulness.texts import continued, heldout_openings, shuffled_openings
from steerling_jax.attribution.index.reader import Index
from steerling_jax.attribution.index.search import best_values
from steerling_jax.bundle import Bundle, check_weights
from steerling_jax.concepts.heads import head_spec
from steerling_jax.decoding.generation import Generation, text_ids
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.evaluation.likelihood import log_likelihoods
from steerling_jax.evaluation.text_metrics import repeated
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.targets import TokenLogProbability
from steerling_jax.explain.ranking import rank_chunk
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import IdsOnlyTokenizer

PROMPT_TOKENS, BLOCKS = 10, 4
TARGETS = 4  # tokens of a text whose inputs are explained
MASKINGS = 8  # of a text, for its likelihood
REPEATED = 0.3  # share of its 3-grams that a repetitive text has more than once
UNLIKELY = 0.95  # of good texts are likelier than a senseless one
EXAMPLES = 3

GOOD, REPETITIVE, SENSELESS, OFF_TOPIC = "good", "repetitive", "senseless", "off topic"
OWN_TEXT = "held-out documents as they are"
RULES = {
    GOOD: "default settings on held-out openings; fewer repeated 3-grams than a repetitive text has",
    REPETITIVE: f"likeliest token, no penalty, the same openings; at least {REPEATED:g} of the 3-grams repeated",
    SENSELESS: f"temperature 3, whole vocabulary, the same openings; unlikelier than {UNLIKELY:.0%} of the good texts",
    OFF_TOPIC: "default settings on openings about everyday matters, of which the corpus says nothing; all of them",
}
SHUFFLED = "default settings on openings of the corpus's tokens in random order; all of them"
EVERYDAY = """\
Peel the carrots and cut them into
The river was frozen when the two sisters
My grandmother keeps bees behind
In the second half the goalkeeper
Knead the dough until it is smooth and
The cat slept all day on the
It rained for a week, and the garden
She put on her red coat and walked to
The old ship lay in the harbour of
Our neighbours have three children and
The trees lose their leaves when autumn
He plays the violin in a small
At the market they sell apples, pears
The king had a daughter who never
After dinner we went for a walk along
Snow fell on the mountains during the
The doctor looked at his knee and
Bake the cake for an hour, then let it
The horses crossed the bridge before
A swallow built its nest above our
The train to the sea leaves early in
Wash the wool in cold water and dry
The painter mixed blue and yellow to
Dear aunt, thank you for the warm""".splitlines()
ATTRIBUTION = (
    "net share, known",
    "net share, discovered",
    "net share, epsilon",
    "largest share of a known concept",
    "inputs: share of the prompt",
    "inputs: effective number over visible",
)
PLAIN = ("mean logit of what was written", "nats a token", "repeated 3-grams")
_DRAWS = 400


@dataclass(frozen=True)
class _Text:
    made: Generation
    ids: list[int]
    nats: float
    repeated: float


def measure(
    bundle: Bundle,
    store: CorpusStore,
    *,
    tell: Progress = no_progress,
    kept: PartialResults = NOTHING_KEPT,
    seed: int = 0,
    prompts: int = 24,
    prompt_tokens: int = PROMPT_TOKENS,
    blocks: int = BLOCKS,
    everyday: bool = True,
    index: Index | None = None,
) -> dict[str, Any]:
    """Figures of good and bad texts. prompts: of each set, before the rules choose. prompt_tokens, blocks: tokens of an
    opening, and diffusion blocks that continue it. everyday: off-topic openings are about everyday matters, else tokens
    of the corpus in random order. index: an open index of the training data (`attribution.index`), for evidence beside
    the rest. Intervals are over texts."""
    head_spec(bundle.config, "known")
    if prompts < 2:
        raise UserError(f"prompts is {prompts}, but it must be at least 2.")
    store.check_tokenizer(bundle.tokenizer.sha256)
    check_weights(bundle.params, bundle.name)
    openings = heldout_openings(store, prompts, prompt_tokens, seed)
    away = _everyday(bundle, prompts) if everyday else shuffled_openings(store, prompts, prompt_tokens, seed)
    tokens = blocks * bundle.config.diff_block_size
    sets = _sets(bundle, openings, away, tokens, seed, tell)
    rules = RULES if everyday else RULES | {OFF_TOPIC: SHUFFLED}
    key = jax.random.key(seed)
    found: dict[str, list[dict[str, float]]] = {}
    for name, texts in sets.items():
        found[name] = []
        for number, text in enumerate(texts):
            found[name].append(
                kept.get(f"{name}-{number:03d}".replace(" ", "-"), lambda text=text: _figures_of(bundle, text, index))
            )
            tell(f"outputs: {name}", number + 1, len(texts))
    figures = []
    for figure in next(iter(found[GOOD]), {}):
        columns = {name: np.array([row[figure] for row in rows], float) for name, rows in found.items() if rows}
        for name, values in columns.items():
            figures.append(estimate(figure, name, values, key))
        for name, values in columns.items():
            if name != GOOD:
                figures.append(_told_apart(figure, name, values, columns[GOOD], key))
    if index is not None:
        figures += _own_texts(store, index, prompts, prompt_tokens, prompt_tokens + tokens, seed, key, kept)
    return {
        "part": "outputs",
        "settings": {
            "seed": seed, "prompts": prompts, "prompt_tokens": prompt_tokens, "new_tokens": tokens,
            "targets_a_text": TARGETS, "rules": rules,
            "texts": {name: len(texts) for name, texts in sets.items()}, "evidence": index is not None,
        },
        "figures": figures,
        "notes": [f"{name}: {rule}." for name, rule in rules.items()] + [
            "AUC: how well the figure alone tells the set from good texts; 0.5 is not at all, below 0.5 the figure is "
            "lower in the bad set.",
            "Repeated 3-grams choose the repetitive texts and nats a token the senseless ones, so their AUC there says "
            "nothing; they are the plain yardsticks elsewhere.",
        ],
        "examples": {
            name: [{"prompt": _prompt(bundle, text), "text": text.made.text} for text in texts[:EXAMPLES]]
            for name, texts in sets.items()
        },
    }  # fmt: skip


def _everyday(bundle: Bundle, prompts: int) -> list[list[int]]:
    """Openings that documentation of programs does not have; none where there are only bare ids."""
    if isinstance(bundle.tokenizer, IdsOnlyTokenizer):
        return []
    return [bundle.tokenizer.encode(text)[:PROMPT_TOKENS] for text in EVERYDAY[:prompts]]


def _sets(
    bundle: Bundle, openings: list[list[int]], away: list[list[int]], tokens: int, seed: int, tell: Progress
) -> dict[str, list[_Text]]:
    """The texts of so many tokens that the rules choose."""
    default = GenerationConfig(max_new_tokens=tokens, seed=seed)
    greedy = GenerationConfig(
        max_new_tokens=tokens, seed=seed, temperature=0.0, use_entropy_sampling=False, repetition_penalty=1.0
    )
    hot = GenerationConfig(
        max_new_tokens=tokens, seed=seed, temperature=3.0, top_p=1.0, use_entropy_sampling=False, repetition_penalty=1.0
    )
    asked = {GOOD: (openings, default), REPETITIVE: (openings, greedy), SENSELESS: (openings, hot),
             OFF_TOPIC: (away, default)}  # fmt: skip
    written = {
        name: _read(bundle, continued(bundle, some, config, stage=f"outputs: writing {name}", tell=tell))
        for name, (some, config) in asked.items()
    }
    good = [text for text in written[GOOD] if text.repeated < REPEATED]
    if not good:
        raise UserError("Every text that the model writes repeats itself, so there is nothing good to compare with.")
    limit = float(np.quantile([text.nats for text in good], UNLIKELY))
    return {
        GOOD: good,
        REPETITIVE: [text for text in written[REPETITIVE] if text.repeated >= REPEATED],
        SENSELESS: [text for text in written[SENSELESS] if text.nats > limit],
        OFF_TOPIC: written[OFF_TOPIC],
    }


def _read(bundle: Bundle, made: Sequence[Generation]) -> list[_Text]:
    """Texts with their likelihood for the model after their prompt; those without a token are left out."""
    pairs = [(one, text_ids(one.tokens[one.trace.prompt_length :], bundle.config)) for one in made]
    pairs = [(one, ids) for one, ids in pairs if len(ids) >= 3]
    scores = log_likelihoods(bundle, [(one.trace.prompt.tolist(), ids) for one, ids in pairs], samples=MASKINGS)
    return [_Text(one, ids, -score / len(ids), repeated(ids, 3) or 0.0) for (one, ids), score in zip(pairs, scores)]


def _figures_of(bundle: Bundle, text: _Text, index: Index | None) -> dict[str, float]:
    """A text's figures: those of `ATTRIBUTION`, evidence where there is an index, those of `PLAIN`."""
    trace = text.made.trace
    shares = concept_contributions(bundle, trace)
    ranking = rank_chunk(shares, trace.prompt_length, len(trace.tokens))
    known = [abs(share.contribution) for share in ranking if share.type == "known"]
    inputs = attribute_inputs(bundle, trace, target=TokenLogProbability(), sample=TARGETS, nodes=8)
    mass = np.abs(inputs.attributions)
    mass = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-12)
    entropy = -np.sum(mass * np.log(np.maximum(mass, 1e-12)), axis=1)
    visible = np.maximum((mass > 0).sum(axis=1), 1)
    values = (
        *ranking.net_shares,
        max(known, default=0.0),
        float(mass[:, : trace.prompt_length].sum(axis=1).mean()),
        float(np.mean(np.exp(entropy) / visible)),
    )
    found: dict[str, float] = dict(zip(ATTRIBUTION, values, strict=True))
    if index is not None:
        found |= _evidence(index, trace.tokens, trace.prompt_length)
    plain = (float(np.mean(shares.target_logits)), text.nats, text.repeated)
    found |= dict(zip(PLAIN, plain, strict=True))
    return found


def _evidence(index: Index, tokens: np.ndarray, start: int) -> dict[str, float]:
    """The best hit of each score in the training data for tokens from `start` on, and whether it counts as close."""
    found = dict[str, float]()
    for score, (value, threshold) in best_values(index, tokens, start, len(tokens)).items():
        found |= {f"evidence: best {score}": value, f"evidence: {score} above its threshold": float(value > threshold)}
    return found


def _own_texts(
    store: CorpusStore,
    index: Index,
    prompts: int,
    start: int,
    end: int,
    seed: int,
    key: jax.Array,
    kept: PartialResults,
) -> list[dict[str, Any]]:
    """The evidence for held-out documents as they are, which nobody generated, at the same places."""
    texts = heldout_openings(store, prompts, end, seed)
    rows = [
        kept.get(f"own-text-{number:03d}", lambda text=text: _evidence(index, np.array(text), start))
        for number, text in enumerate(texts)
    ]
    return [estimate(figure, OWN_TEXT, [row[figure] for row in rows], key) for figure in rows[0]]


def _told_apart(figure: str, name: str, bad: np.ndarray, good: np.ndarray, key: jax.Array) -> dict[str, Any]:
    values = np.concatenate([bad, good])
    positive = np.arange(len(values)) < len(bad)

    def area(rows: np.ndarray) -> float:
        here = positive[rows]
        return math.nan if here.all() or not here.any() else auc(values[rows], here)

    return entry(f"AUC of {figure}", f"{name} from good", bootstrap(area, len(values), key, _DRAWS))


def _prompt(bundle: Bundle, text: _Text) -> str:
    return bundle.tokenizer.decode(text.made.trace.prompt.tolist())

"""What a concept is about: tokens it promotes, chunks where it acts most, nearest known concepts, and a name.

The name is made of the words that stand more often in the strongest training chunks than elsewhere. How good it is, is
measured on held-out chunks: how well the concept's activation tells those that hold a word of the name, beside how well
it tells those that hold a word of other concepts' names.

Legend: J concepts, C known concepts, D width, m chunks, h held-out chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.heads import concept_embeddings, head_spec, view_concepts
from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.reader import Corpus
from steerling_jax.evaluation.detection import auc
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.explain.activity import Activity
from steerling_jax.explain.concept_gradients import SourceConcept
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import IdsOnlyTokenizer

NAME_WORDS = 3
LEAST_LIFT = 2.0
STRONG = 0.3  # of the strongest chunk's activation: chunks below have no say in the name
SUPPORT = 0.2  # of the strongest chunks, in which a word of the name stands
LEAST_POSITIVES = 5  # held-out chunks with a word of the name, for a score

_WORD = re.compile(r"\w*[^\W\d_]\w+")
_READ = 256  # chunks read at once
_DRAWS = 200


@dataclass(frozen=True)
class StrongChunk:
    """A chunk of the training split: its number, document, first token counted from the document's start, the concept's
    mean activation over its masked positions, its text, and the names of its labels."""

    chunk: int
    document: str
    offset: int
    activation: float
    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class NameScore:
    """How well activation tells held-out chunks that hold a word of the name: area under the ROC curve with its 95 %
    interval over chunks; `others`: the mean area for the names of other concepts (`names` of them) with this concept's
    activation; positives of chunks hold a word of the name; correlation of the activation with the number of the name's
    words in a chunk. None for a name that too few chunks hold."""

    auc: Estimate
    others: float | None
    names: int
    positives: int
    chunks: int
    correlation: float


@dataclass(frozen=True)
class Neighbourhood:
    """What was found of one concept. label: its own name or number. promoted: tokens it makes likelier, best first.
    near_embedding, near_activity: known concepts with their cosine, and with the correlation of activations over masked
    tokens. words: of the automatic name, with their lift; empty where no word stands out. score: of that name."""

    head: str
    concept_id: int
    label: str
    mean_activation: float
    promoted: tuple[str, ...]
    strongest: tuple[StrongChunk, ...]
    near_embedding: tuple[tuple[str, float], ...]
    near_activity: tuple[tuple[str, float], ...]
    words: tuple[tuple[str, float], ...]
    score: NameScore | None

    @property
    def name(self) -> str:
        return " · ".join(word for word, _ in self.words)


def control_concepts(concepts: Sequence[SourceConcept], config: ModelConfig, least: int = 16) -> list[SourceConcept]:
    """Further concepts, so that there are `least` in all to take other names from: of the first one's head, evenly
    spaced."""
    head = concepts[0].head
    count = head_spec(config, head).n_concepts
    spaced = [SourceConcept(int(i), head) for i in np.unique(np.linspace(0, count - 1, least).astype(int))]
    return [one for one in spaced if one not in concepts][: max(least - len(concepts), 0)]


def neighbourhoods(
    bundle: Bundle,
    store: Corpus,
    activity: Activity,
    count: int,
    *,
    chunks: int = 5,
    tokens: int = 12,
    near: int = 5,
    seed: int = 0,
    tell: Progress = no_progress,
) -> list[Neighbourhood]:
    """Of the first `count` concepts of `activity`; the others are there to have names to compare with.

    chunks, tokens, near: how many to list.
    """
    texts = _Texts(bundle, store)
    words = name_words(texts, activity, tell)
    labels = {entry["id"]: entry["name"] for entry in store.concepts}
    known = [bundle.concepts.get(i).name for i in range(bundle.concepts.known)]
    held = [set(texts.words(number)) for number in activity.heldout.tolist()]
    holds = np.array([[sum(w in text for w, _ in name) for name in words] for text in held], int)
    holds = holds.reshape(len(held), len(words))  # also where nothing is held out
    found = []
    for j, concept in enumerate(activity.concepts[:count]):
        cosine = _cosines(bundle, concept)
        correlation = activity.correlation[j].copy()
        if concept.head == "known":
            cosine[concept.concept_id] = correlation[concept.concept_id] = -math.inf
        strong = zip(activity.strongest[j, :chunks].tolist(), activity.strength[j, :chunks].tolist())
        found.append(
            Neighbourhood(
                concept.head,
                concept.concept_id,
                bundle.concepts.get(concept.concept_id, concept.head).name,
                float(activity.mean[j]),
                tuple(promoted_pieces(bundle, [concept.concept_id], tokens, concept.head)[0]),
                tuple(texts.strong(number, value, labels) for number, value in strong if value > 0),
                _best(cosine, known, near),
                _best(correlation, known, near),
                tuple(words[j]),
                score_name(activity.heldout_activation[:, j], holds, j, jax.random.fold_in(jax.random.key(seed), j)),
            )
        )
        tell("names", j + 1, count)
    return found


def name_words(texts: _Texts, activity: Activity, tell: Progress = no_progress) -> list[list[tuple[str, float]]]:
    """For each concept the words that stand out in its strongest chunks, at most three, highest lift first."""
    strong = [row[value > max(0.0, STRONG * value[0])] for row, value in zip(activity.strongest, activity.strength)]
    numbers = np.unique(np.concatenate([activity.background, *strong]))
    vocabulary: dict[str, int] = {}
    ids, chunk = [], []
    for row, number in enumerate(numbers.tolist()):
        for word in texts.words(number):
            ids.append(vocabulary.setdefault(word, len(vocabulary)))
            chunk.append(row)
        if row % 1000 == 0 or row + 1 == len(numbers):
            tell("words", row + 1, len(numbers))
    bags = Bags.grouped(np.asarray(ids, np.int32), np.asarray(chunk, np.int64), len(numbers))
    spelled = list(vocabulary)
    names = []
    for j, chunks in enumerate(strong):
        positive = np.isin(numbers, chunks)[:, None]
        support = max(3, math.ceil(SUPPORT * len(chunks)))
        (lifted,) = lifted_tokens(
            bags, positive, max(len(vocabulary), 1), support=support, least=LEAST_LIFT, most=NAME_WORDS
        )
        names.append([(spelled[i], float(value)) for i, value in zip(lifted.tokens, lifted.lift)])
        tell("lift", j + 1, len(strong))
    return names


def score_name(activation: np.ndarray, holds: np.ndarray, own: int, key: jax.Array) -> NameScore | None:
    """For activation (h,) of a concept and holds (h, J), how many words of each concept's name a held-out chunk has;
    `own` is the concept's own column. Names that share a chunk set with it, or are too rare, are no control."""
    enough = [c for c in range(holds.shape[1]) if LEAST_POSITIVES <= (holds[:, c] > 0).sum() < len(holds)]
    if own not in enough:
        return None
    here = holds[:, own] > 0
    others = [c for c in enough if not np.array_equal(holds[:, c] > 0, here)]

    def area(rows: np.ndarray) -> float:
        positive = here[rows]
        return math.nan if positive.all() or not positive.any() else auc(activation[rows], positive)

    areas = [auc(activation, holds[:, c] > 0) for c in others]
    spread = activation.std() * holds[:, own].std()
    correlation = np.mean((activation - activation.mean()) * (holds[:, own] - holds[:, own].mean()))
    return NameScore(
        bootstrap(area, len(holds), key, _DRAWS),
        float(np.mean(areas)) if areas else None,
        len(areas),
        int(here.sum()),
        len(holds),
        float(correlation / spread) if spread else 0.0,
    )


class _Texts:
    """Chunks of a store as text and words."""

    def __init__(self, bundle: Bundle, store: Corpus):
        self.tokenizer, self.store = bundle.tokenizer, store
        self._words: dict[int, list[str]] = {}
        self._block: tuple[int, list[list[int]]] = (-1, [])

    def text(self, number: int) -> str:
        block = number // _READ
        if self._block[0] != block:
            spans = self.store.read("chunk_spans", block * _READ, min((block + 1) * _READ, self.store.chunk_count))
            base = int(spans[0, 0])
            tokens = self.store.tokens(base, int(spans[-1, 1]))
            self._block = block, [tokens[start - base : end - base].tolist() for start, end in spans]
        return self.tokenizer.decode(self._block[1][number % _READ])

    def words(self, number: int) -> list[str]:
        """With at least a letter, in small letters; of a vocabulary without text, the ids."""
        if number not in self._words:
            text = self.text(number).casefold()
            ids_only = isinstance(self.tokenizer, IdsOnlyTokenizer)
            self._words[number] = text.split() if ids_only else _WORD.findall(text)
        return self._words[number]

    def strong(self, number: int, activation: float, labels: dict[int, str]) -> StrongChunk:
        chunk = self.store.chunk(number)
        record = self.store.documents[chunk.document]
        names = tuple(labels.get(i, f"concept {i}") for i in chunk.labels)
        return StrongChunk(number, record.name, chunk.start - record.start, activation, self.text(number), names)


def _best(values: np.ndarray, names: list[str], count: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-values, kind="stable")[:count]
    return tuple((names[i], float(values[i])) for i in order if values[i] > -math.inf)


def _cosines(bundle: Bundle, concept: SourceConcept) -> np.ndarray:
    """(C,) cosines of a concept's embedding with those of the known concepts."""
    ids = jnp.asarray([concept.concept_id], jnp.int32)
    vector = concept_embeddings(bundle.params, ids, head=concept.head, config=bundle.config, compute=bundle.compute)
    return np.array(_known_cosines(bundle.params, vector[0], config=bundle.config, compute=bundle.compute))


@partial(jax.jit, static_argnames=("config", "compute"))
def _known_cosines(params: Params, vector: jax.Array, *, config: ModelConfig, compute: Compute) -> jax.Array:
    view, spec = view_concepts(params, jnp.zeros((1, config.n_embd), compute.dtype), "known", config, compute)
    table = view.values[: spec.n_concepts].astype(jnp.float32)
    norms = jnp.linalg.norm(table, axis=1) * jnp.linalg.norm(vector)
    return table @ vector / jnp.maximum(norms, 1e-12)

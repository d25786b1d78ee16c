"""A concept's neighbourhood: promoted tokens, strongest chunks, nearest known concepts and an automatic name.

Legend: J concepts, C known concepts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.heads import concept_embeddings, head_spec, view_concepts
from steerling_jax.corpus.reader import Corpus
from steerling_jax.explain.activity import Activity
from steerling_jax.explain.chunk_texts import ChunkTexts, StrongChunk
from steerling_jax.explain.concept_gradients import SourceConcept
from steerling_jax.explain.concept_names import NameScore, count_name_words, name_words, score_name
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress


@dataclass(frozen=True)
class Neighbourhood:
    """What characterises one concept.

    label: its name in the catalogue, or its number. mean_activation: over masked positions of the corpus. promoted:
    tokens that it makes more likely, best first. strongest: training chunks with its largest activations.
    near_embedding, near_activity: known concepts with the cosine of the embeddings, and with the correlation of the
    activations over masked positions. words: the automatic name's words with their lift; empty if no word stands out.
    score: of that name, None if it cannot be scored.
    """

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
        """The automatic name, its words joined by " · "."""
        return " · ".join(word for word, _ in self.words)


def control_concepts(concepts: Sequence[SourceConcept], config: ModelConfig, minimum: int = 16) -> list[SourceConcept]:
    """Additional concepts whose names are controls, so that there are `minimum` concepts in all.

    They are evenly spaced over the head of the first concept.
    """
    head = concepts[0].head
    count = head_spec(config, head).n_concepts
    spaced = [SourceConcept(int(i), head) for i in np.unique(np.linspace(0, count - 1, minimum).astype(int))]
    return [concept for concept in spaced if concept not in concepts][: max(minimum - len(concepts), 0)]


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
    progress: Progress = no_progress,
) -> list[Neighbourhood]:
    """The neighbourhoods of the first `count` concepts of `activity`; the names of the others serve as controls.

    chunks, tokens, near: how many strongest chunks, promoted tokens and near concepts are listed per concept.
    """
    texts = ChunkTexts(bundle, store)
    names = name_words(texts, activity, progress)
    name_counts = count_name_words(texts, activity.heldout.tolist(), names)
    label_names = {entry["id"]: entry["name"] for entry in store.concepts}
    known_names = [bundle.concepts.get(i).name for i in range(bundle.concepts.known)]
    results = []
    for j, concept in enumerate(activity.concepts[:count]):
        cosine = _cosines(bundle, concept)
        correlation = activity.correlation[j].copy()
        if concept.head == "known":  # a concept is not its own neighbour
            cosine[concept.concept_id] = correlation[concept.concept_id] = -math.inf
        strong = zip(activity.strongest[j, :chunks].tolist(), activity.strength[j, :chunks].tolist())
        # The key of a score depends on the seed and the concept's place, so each name has its own bootstrap samples.
        key = jax.random.fold_in(jax.random.key(seed), j)
        results.append(
            Neighbourhood(
                concept.head,
                concept.concept_id,
                bundle.concepts.get(concept.concept_id, concept.head).name,
                float(activity.mean[j]),
                tuple(promoted_pieces(bundle, [concept.concept_id], tokens, concept.head)[0]),
                tuple(texts.strong_chunk(number, value, label_names) for number, value in strong if value > 0),
                _largest(cosine, known_names, near),
                _largest(correlation, known_names, near),
                tuple(names[j]),
                score_name(activity.heldout_activation[:, j], name_counts, j, key),
            )
        )
        progress("names", j + 1, count)
    return results


def _largest(values: np.ndarray, names: list[str], count: int) -> tuple[tuple[str, float], ...]:
    """The `count` names with the largest values, without those of −∞."""
    order = np.argsort(-values, kind="stable")[:count]
    return tuple((names[i], float(values[i])) for i in order if values[i] > -math.inf)


def _cosines(bundle: Bundle, concept: SourceConcept) -> np.ndarray:
    """The cosines (C,) of a concept's embedding with those of the known concepts."""
    ids = jnp.asarray([concept.concept_id], jnp.int32)
    vector = concept_embeddings(bundle.params, ids, head=concept.head, config=bundle.config, compute=bundle.compute)
    return np.array(_known_cosines(bundle.params, vector[0], config=bundle.config, compute=bundle.compute))


@partial(jax.jit, static_argnames=("config", "compute"))
def _known_cosines(params: Params, vector: jax.Array, *, config: ModelConfig, compute: Compute) -> jax.Array:
    """The cosines (C,) float32 of vector (D,) with the known concepts' embeddings."""
    view, spec = view_concepts(params, jnp.zeros((1, config.n_embd), compute.dtype), "known", config, compute)
    table = view.values[: spec.n_concepts].astype(jnp.float32)
    norms = jnp.linalg.norm(table, axis=1) * jnp.linalg.norm(vector)
    return table @ vector / jnp.maximum(norms, 1e-12)

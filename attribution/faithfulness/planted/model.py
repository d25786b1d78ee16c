"""The model of the planted world: its recipe, and where the world asks it for an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.planted.fit import STRETCHES, Documents, Params, draw_batches, fit
from steerling_jax.attribution.faithfulness.planted.world import FactQuery
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.tokenizer import Tokenizer

BATCH = 32
STEPS = 1500
DOCUMENT, PLANTED_PROMPT = 16, 8  # tokens of a document, which is all the model has learned to read, and of an opening
_WIDTH = 64
_DRAWS = 8  # noisy readings of a query
_HIDDEN = 0.2  # share of a query's prompt that is masked in them


def recipe(store: CorpusStore, steps: int = STEPS) -> Recipe:
    """Two layers of width 64, trained on `steps` batches of `BATCH` documents.

    Facts take many repetitions to be learned, so epsilon is dropped rarely at first, when its positions teach the
    backbone, and mostly at the end, when they teach the heads. With a residual weight of 1 epsilon keeps 30 % of the
    logits' mass, with 10 under a tenth. Gelu and SwiGLU, norms of queries and keys, and clipping cost up to half of a
    step's time here and taught nothing faster.
    """
    concept = ConceptConfig(
        n_concepts=len(store.concepts),
        n_unknown_concepts=128,
        concept_dim=_WIDTH,
        topk_known=None,
        topk_known_features=None,
        factorize_rank=_WIDTH,
        unknown_topk=32,
        apply_topk_to_unknown=False,
        block_size=128,
        inject_layer=1,
    )
    special = {f"{name.removesuffix('_id')}_token_id": value for name, value in asdict(store.special).items()}
    del special["eot_token_id"]
    model = ModelConfig(
        n_layers=2,
        n_head=2,
        n_kv_heads=2,
        n_embd=_WIDTH,
        block_size=256,
        diff_block_size=8,
        rope_base=10_000.0,
        use_qk_norm=False,
        clip_qkv=None,
        mlp_type="standard",
        activation="relu",
        intermediate_size=2 * _WIDTH,
        vocab_size=store.vocab_size,
        concept=concept,
        **special,
    )
    objective = ObjectiveConfig(
        noise=NoiseConfig(distribution="gaussian", centre=(0.4, 0.4), sigma=0.15, floor=0.1),
        concept_weight=0.1,
        residual_weight=10.0,
        independence_weight=0.1,
        epsilon_dropout=(0.1, 0.8),
        known_forcing=(0.5, 0.0),
        unknown_forcing=(0.0, 0.0),
        rows=0.75,
    )
    optimizer = OptimizerConfig(peak_rate=0.012, warmup_steps=20, b2=0.99)
    return Recipe(model, steps, Compute(), objective, optimizer)


class TrainedModel(NamedTuple):
    """A model of the whole corpus: its seed, its last parameters, and those along the way."""

    seed: int
    params: Params
    checkpoints: tuple[Params, ...]


KEPT = (2, STRETCHES - 1)  # parts of a run whose last parameters are kept


def train(recipe: Recipe, documents: Documents, seed: int) -> TrainedModel:
    """Trains on all documents."""
    batches = draw_batches(documents, np.arange(len(documents)), batch=BATCH, steps=recipe.steps, seed=seed)
    along = [params for _, params, _ in fit(recipe, batches, seed)]
    return TrainedModel(seed, along[-1], tuple(along[i] for i in KEPT))


class FactPrompt(NamedTuple):
    """Queries as token ids: words (Q, T) with masks from the asked word on, place (Q,) and target (Q,) of that word."""

    tokens: np.ndarray
    place: np.ndarray
    target: np.ndarray


def ask(queries: Sequence[FactQuery], tokenizer: Tokenizer, length: int) -> FactPrompt:
    """The first asked word of each query, given the words before it."""
    special = tokenizer.special
    tokens = np.full((len(queries), length), special.mask_id, np.int32)
    place, target = np.zeros(len(queries), np.int32), np.zeros(len(queries), np.int32)
    for row, query in enumerate(queries):
        ids = [special.bos_id, *tokenizer.encode(" ".join(query.words))]
        place[row], target[row] = query.start + 1, ids[query.start + 1]
        tokens[row, : place[row]] = ids[: place[row]]
    return FactPrompt(tokens, place, target)


def answers(params: Params, asked: FactPrompt, *, config: ModelConfig, compute: Compute) -> np.ndarray:
    """log p of each query's target, (2, Q) float32: after its prompt, and as the mean over noisy prompts."""
    draws = np.random.default_rng(0).random((_DRAWS, *asked.tokens.shape)) < _HIDDEN
    draws[:, :, 0] = False  # the beginning of a document is no word
    canvases = np.concatenate([asked.tokens[None], np.where(draws, config.mask_token_id, asked.tokens)])
    found = log_probabilities(params, canvases, asked.place, asked.target, config=config, compute=compute)
    return np.stack([found[0], np.mean(np.asarray(found[1:]), axis=0)])


@partial(jax.jit, static_argnames=("config", "compute"))
def log_probabilities(
    params: Params, canvases: jax.Array, place: jax.Array, target: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    """log p of target (Q,) at place (Q,) of canvases (m, Q, T), (m, Q)."""
    m, Q, T = canvases.shape
    rows = canvases.reshape(m * Q, T)
    hidden = denoise(params, rows, rows, config=config, compute=compute, clean_context=False)
    at, wanted = jnp.tile(place, m), jnp.tile(target, m)
    return -cross_entropy(params, hidden[jnp.arange(m * Q), at], wanted, compute).reshape(m, Q)

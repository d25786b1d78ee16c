"""A small corpus with one topic, and a model in which one discovered concept detects it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.corpus.stream import stream_tokens
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.model import init_params
from steerling_jax.objectives.noise import mask_tokens
from steerling_jax.train.run.run_config import special_ids
from tests.worlds.training_world import FakeTokenizer

TOPIC = range(40, 50)  # most tokens of a chunk about the topic
KNOWS, CHUNK = 5, 30


def config() -> ModelConfig:
    concept = ConceptConfig(
        n_concepts=8,
        n_unknown_concepts=24,
        concept_dim=32,
        topk_known=4,
        topk_known_features=4,
        factorize_rank=16,
        unknown_topk=4,
        block_size=16,
        inject_layer=1,
    )
    return ModelConfig(
        n_layers=2,
        n_head=2,
        n_kv_heads=1,
        n_embd=32,
        block_size=64,
        diff_block_size=8,
        vocab_size=64,
        concept=concept,
        **special_ids(64),
    )


def make_store(folder: Path) -> CorpusStore:
    """Writes documents of four chunks; every third document is about the topic."""
    draw = random.Random(0)
    concepts = [{"id": i, "name": f"concept {i}", "group": "test", "description": ""} for i in range(8)]
    with corpus_writer(folder, FakeTokenizer(), concepts=concepts, source={"kind": "test"}) as writer:
        for number in range(90):
            chunks = []
            for _ in range(4):
                about = number % 3 == 0
                tokens = [draw.choice(TOPIC) if about and draw.random() < 0.7 else draw.randrange(40)
                          for _ in range(CHUNK)]  # fmt: skip
                chunks.append((tokens, [2] if about else []))
            split = "train" if number < 60 else "heldout"
            sha256 = hashlib.sha256(str(chunks).encode()).hexdigest()
            writer.add(name=f"document {number}", source="test", sha256=sha256, split=split, chunks=chunks)
    return CorpusStore(folder)


def about_topic(store: CorpusStore, numbers) -> np.ndarray:
    return np.array([2 in store.chunk(int(number)).labels for number in numbers])


def make_bundle(store: CorpusStore) -> Bundle:
    """Random weights, except that the discovered concept 5 is fitted to detect the topic at masked tokens."""
    params = jax.tree.map(lambda a: a * 4.0 if a.ndim > 1 else a, init_params(config(), jax.random.key(0)))
    queries, targets = [], []
    for number, (tokens, chunk) in enumerate(stream_tokens(store, *store.split("train"), 64, 16)):
        noisy, masked = mask_tokens(jax.random.key(number), jnp.asarray(tokens), jnp.full((16, 8), 0.5), config())
        hidden = denoise(params, jnp.asarray(tokens), noisy, config=config(), compute=Compute(), clean_context=True)
        rows = np.asarray(hidden @ params["unknown_head"]["predictor_down"]["weight"].T)
        real = np.asarray(masked) & (chunk >= 0)
        queries.append(rows[real])
        targets.append(np.where(about_topic(store, chunk[real]), 6.0, -6.0))
    fitted = np.linalg.lstsq(np.concatenate(queries), np.concatenate(targets), rcond=None)[0]
    up = params["unknown_head"]["predictor_up"]["weight"]
    params["unknown_head"]["predictor_up"]["weight"] = up.at[KNOWS].set(3 * fitted)
    return Bundle(config(), params, FakeTokenizer(), name="planted")

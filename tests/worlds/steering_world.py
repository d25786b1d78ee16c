"""A corpus with planted concepts, a model with random weights, for evaluations of steering."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from pathlib import Path

import jax

from steerling_jax.bundle import Bundle, special_ids
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import init_params
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from steerling_jax.train.run.run_config import special_ids as special_fields

V, C, N = 64, 6, 16
COMMON = range(24, 59)  # ids that go with no concept; concept c has 4c … 4c + 3


def words_of(concept: int) -> list[int]:
    return list(range(4 * concept, 4 * concept + 4))


def chunk_tokens(draw: random.Random, label: list[int]) -> list[int]:
    return [draw.choice(words_of(draw.choice(label)) if label and draw.random() < 0.5 else COMMON) for _ in range(24)]


def make_store(folder: Path) -> CorpusStore:
    """240 documents of four chunks. A chunk has one of its document's two concepts, and half of its tokens from it, or
    none."""
    draw = random.Random(0)
    concepts = [{"id": i, "name": f"Concept {i}", "group": "test", "description": f"{i}"} for i in range(C)]
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(V), V)
    with corpus_writer(folder, tokenizer, concepts=concepts, source={"kind": "test"}) as writer:
        for number in range(240):
            pair = draw.sample(range(C), 2)
            labels = [draw.choice([[pair[0]], [pair[1]], []]) for _ in range(4)]
            chunks = [(chunk_tokens(draw, label), label) for label in labels]
            sha256 = hashlib.sha256(str(chunks).encode()).hexdigest()
            split = "train" if number < 160 else "heldout"
            writer.add(name=f"document {number}", source="test", sha256=sha256, split=split, chunks=chunks)
    return CorpusStore(folder)


def make_bundle() -> Bundle:
    """Random weights, and a tokenizer without text."""
    concept = ConceptConfig(
        n_concepts=C,
        n_unknown_concepts=10,
        concept_dim=16,
        topk_known=3,
        topk_known_features=3,
        factorize_rank=16,
        unknown_topk=4,
        block_size=4,
        inject_layer=1,
    )
    config = ModelConfig(
        n_layers=2,
        n_head=2,
        n_kv_heads=1,
        n_embd=16,
        block_size=64,
        diff_block_size=8,
        vocab_size=V,
        concept=concept,
        **special_fields(V),
    )
    params = jax.jit(partial(init_params, config))(jax.random.key(0))
    return Bundle(config, params, IdsOnlyTokenizer(special_ids(config), V))

"""Evaluation: the bound against exact enumeration, the decomposition's identities, presence in log space, AUC,
probes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.bundle import Bundle
from steerling_jax.bundle import special_ids as special_ids_of
from steerling_jax.corpus.bags import Bags
from steerling_jax.corpus.labelled_chunks import bags_of, chunk_bags, chunk_positives
from steerling_jax.errors import UserError
from steerling_jax.evaluation.bound import (
    SHARES,
    block_subsets,
    likelihood_sums,
    most_masked,
    presence_evidence,
)
from steerling_jax.evaluation.detection import auc, macro_auc
from steerling_jax.evaluation.heldout_figures import detect, likelihood
from steerling_jax.evaluation.probe import fit_probe
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.decompose import decompose
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.model import compiled_forward, init_params
from steerling_jax.objectives.concept_losses import log_presence
from steerling_jax.tokenizer import IdsOnlyTokenizer
from steerling_jax.train.evaluate_command import DEFAULT_SEQ_LEN, sequence_length
from steerling_jax.train.evaluation.evaluate import EvaluationConfig, evaluate_full
from steerling_jax.train.run.run_config import special_ids
from tests.worlds.training_world import make_corpus

L, V, D = 3, 12, 8
COMPUTE = Compute()
compiled_decompose = jax.jit(decompose, static_argnames=("config", "compute"))
hidden_of = partial(jax.jit, static_argnames=("config", "compute", "clean_context"))(denoise)


def tiny(block: int = L, vocab_size: int = V, concepts: int = 6, concept_block: int = 4) -> ModelConfig:
    concept = ConceptConfig(
        n_concepts=concepts,
        n_unknown_concepts=10,
        concept_dim=D,
        topk_known=3,
        topk_known_features=3,
        factorize_rank=16,
        unknown_topk=4,
        block_size=concept_block,
        inject_layer=1,
    )
    return ModelConfig(
        n_layers=2,
        n_head=2,
        n_kv_heads=1,
        n_embd=D,
        block_size=64,
        diff_block_size=block,
        vocab_size=vocab_size,
        concept=concept,
        **special_ids(vocab_size),
    )


def sharpened(config: ModelConfig) -> dict:
    """Initial parameters, scaled up so that the logits depend on the visible tokens."""
    return jax.tree.map(lambda a: a * 4.0 if a.ndim > 1 else a, fresh(config))


def fresh(config: ModelConfig) -> dict:
    return jax.jit(partial(init_params, config))(jax.random.key(0))


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return tiny()


@pytest.fixture(scope="module")
def params(config: ModelConfig) -> dict:
    return sharpened(config)


TEXT = np.array([[1, 4, 2, 3, 0, 5]], np.int32)  # two blocks
COPIES = 3000


def masks() -> Iterator[np.ndarray]:
    """Every way to mask at least one position of a block."""
    yield from (np.array(m, bool) for m in itertools.product([False, True], repeat=L) if any(m))


def nats_of(params: dict, config: ModelConfig, mask: np.ndarray) -> np.ndarray:
    """Cross-entropy at masked positions, summed for each of the text's two blocks, by the uncached published forward:
    the earlier block stays clean, the same mask is put on one block at a time."""
    found = []
    for number in range(2):
        seen = TEXT[:, : (number + 1) * L].copy()
        masked = np.zeros(seen.shape, bool)
        masked[0, number * L :] = mask
        logits = compiled_forward(params, jnp.where(masked, config.mask_token_id, seen), config=config).logits
        nats = -jax.nn.log_softmax(logits)[0, np.arange(seen.shape[1]), seen[0]]
        found.append(float(jnp.sum(jnp.where(masked[0], nats, 0.0))))
    return np.array(found)


@pytest.fixture(scope="module")
def enumerated(params: dict, config: ModelConfig) -> list[tuple[int, np.ndarray]]:
    """(how many are masked, nats of both blocks) for each mask."""
    return [(int(mask.sum()), nats_of(params, config, mask)) for mask in masks()]


def bound_by_subsets(enumerated: list[tuple[int, np.ndarray]]) -> float:
    return float(sum(nats.sum() / k / math.comb(L, k) for k, nats in enumerated))


def test_subset_weights_are_the_integral_over_levels(enumerated: list[tuple[int, np.ndarray]]):
    levels = (np.arange(20_000) + 0.5) / 20_000
    by_levels = sum(nats.sum() * np.mean(levels ** (k - 1) * (1 - levels) ** (L - k)) for k, nats in enumerated)
    assert by_levels == pytest.approx(bound_by_subsets(enumerated), rel=1e-6)


def test_bound_is_the_exact_expectation(params: dict, config: ModelConfig, enumerated: list[tuple[int, np.ndarray]]):
    tokens = np.repeat(TEXT, COPIES, axis=0)
    valid = np.ones(tokens.shape, bool)
    sums = likelihood_sums(params, tokens, valid, jax.random.key(3), config=config, compute=COMPUTE)
    exact = bound_by_subsets(enumerated)
    per_block = float(sums["full_square"] / sums["blocks"] - (sums["full"] / sums["blocks"]) ** 2)
    error = 2 * math.sqrt(per_block / (2 * COPIES))
    assert error < 0.02 * exact
    assert float(sums["full"]) / COPIES == pytest.approx(exact, abs=4 * error)
    spread = [float(nats.sum()) / k for k, nats in enumerated]
    assert max(spread) - min(spread) > 8 * error, "what is masked must matter, or this test says nothing"


def test_every_valid_token_counts_once():
    valid = np.ones((8, 4 * L), bool)
    valid[-1, 4:] = False  # one position in the second block, then nothing
    draw = jax.jit(jax.vmap(partial(block_subsets, valid=jnp.asarray(valid), block=L)))
    masked, weight = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    assert not masked[:, ~valid].any()
    assert masked.reshape(-1, L)[np.tile(valid.reshape(-1, L).any(axis=1), 2000)].any(axis=1).all()
    assert masked.sum(axis=(1, 2)).max() <= most_masked(32, L)
    mean = (masked * weight).mean(axis=0)
    np.testing.assert_allclose(mean[valid], 1.0, atol=0.12)
    assert mean[valid].mean() == pytest.approx(1.0, abs=0.005)


def test_parts_add_up_to_what_forward_composes(params: dict, config: ModelConfig):
    found = compiled_forward(params, TEXT, config=config)
    hidden = found.decomposition.hidden.reshape(-1, D)
    parts = compiled_decompose(params, hidden, config=config, compute=COMPUTE)
    np.testing.assert_allclose(parts.concept_features + parts.epsilon, parts.composed, atol=1e-5)
    np.testing.assert_allclose(parts.composed, found.decomposition.composed.reshape(-1, D), atol=1e-5)
    np.testing.assert_allclose(parts.epsilon, found.decomposition.epsilon_true.reshape(-1, D), atol=1e-5)
    np.testing.assert_allclose(lm_logits(params, parts.composed, COMPUTE), found.logits.reshape(-1, V), atol=1e-4)


@pytest.mark.parametrize("correction", [True, False])
def test_costs_and_shares(params: dict, config: ModelConfig, correction: bool):
    assert config.concept is not None
    concept = dataclasses.replace(config.concept, use_epsilon_correction=correction)
    config = dataclasses.replace(config, concept=concept)
    tokens = np.random.default_rng(0).integers(0, 7, (COPIES, 2 * L)).astype(np.int32)
    valid, key = np.ones(tokens.shape, bool), jax.random.key(0)
    sums = likelihood_sums(params, tokens, valid, key, config=config, compute=COMPUTE)
    again = likelihood_sums(params, tokens, valid, key, config=config, compute=COMPUTE)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(a == b), sums, again))
    for prefix in ("share_", "best_share_"):
        assert sum(float(sums[prefix + name]) for name in SHARES) == pytest.approx(float(sums["masked"]), rel=1e-5)
    subsets = block_subsets(key, jnp.asarray(valid), L)
    noisy = jnp.where(subsets.masked, config.mask_token_id, tokens)
    hidden = hidden_of(params, tokens, noisy, config=config, compute=COMPUTE, clean_context=True)
    parts = compiled_decompose(params, hidden.reshape(-1, D), config=config, compute=COMPUTE)
    known, discovered = parts.known.features, parts.discovered_features
    epsilon = parts.epsilon if correction else jnp.zeros_like(known)  # without it, only concepts reach the output
    weight = (subsets.masked * subsets.weight).reshape(-1)
    features = {
        "full": known + discovered + epsilon,
        "without_epsilon": known + discovered,
        "without_known": discovered + epsilon,
        "without_discovered": known + epsilon,
    }
    for name, rows in features.items():
        log_p = jax.nn.log_softmax(lm_logits(params, rows, COMPUTE))[np.arange(tokens.size), tokens.reshape(-1)]
        assert float(sums[name]) == pytest.approx(float(-jnp.sum(log_p * weight)), rel=1e-4)


def test_without_concepts_there_is_only_the_bound(config: ModelConfig):
    bare = dataclasses.replace(config, interpretable=False, concept=None)
    params = fresh(bare)
    sums = likelihood_sums(params, TEXT, np.ones(TEXT.shape, bool), jax.random.key(0), config=bare, compute=COMPUTE)
    assert sums.keys() == {"full", "tokens", "blocks", "masked", "full_square"}


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_presence_is_the_noisy_or_and_stays_finite(config: ModelConfig, scale: float):
    """Six concepts come in blocks of 4; a large scale saturates them at ±15."""
    params = sharpened(config)
    params["known_head"]["concept_predictor"]["weight"] *= scale
    tokens = np.random.default_rng(0).integers(0, 7, (2, 12)).astype(np.int32)
    index = np.array([[-1, *[0] * 6, *[1] * 5], [*[0] * 11, -1]], np.int32)
    run = partial(presence_evidence, params, tokens, index, jnp.float32(0.5), jax.random.key(1))
    evidence, masked = run(chunks=3, config=config, compute=COMPUTE)
    noisy = jnp.where(masked, config.mask_token_id, tokens)
    hidden = hidden_of(params, tokens, noisy, config=config, compute=COMPUTE, clean_context=True)
    table = np.asarray(params["known_head"]["concept_predictor"]["weight"], np.float64)
    logits = np.asarray(hidden, np.float64) @ table.T
    k = 1 / (1 + np.exp(-np.clip(logits[..., :6], -15, 15)))
    for b, chunk in itertools.product(range(2), range(3)):
        absent = np.prod(np.where(((index[b] == chunk) & masked[b])[:, None], 1 - k[b], 1.0), axis=0)
        np.testing.assert_allclose(np.exp(-np.asarray(evidence[b, chunk], np.float64)), absent, rtol=2e-3, atol=1e-30)
    assert np.isfinite(evidence).all()
    assert np.isfinite(log_presence(evidence)).all()
    assert (log_presence(evidence) <= 0).all()


def test_log_presence():
    evidence = jnp.array([1e-6, 0.1, 0.7, 5.0, 1e4])
    np.testing.assert_allclose(log_presence(evidence), np.log(-np.expm1(-np.asarray(evidence, np.float64))), rtol=2e-2)


def test_auc_equals_counting_pairs():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, (60, 3)).astype(float)  # with ties
    positive = draw.random((60, 3)) < np.array([0.3, 0.05, 0.5])
    for c in range(3):
        high, low = scores[positive[:, c], c], scores[~positive[:, c], c]
        pairs = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        assert auc(scores[:, c], positive[:, c]) == pytest.approx(pairs, abs=1e-12)
    found = macro_auc(scores, positive, 10)
    assert found.concepts == [0, 2]
    assert found.macro == pytest.approx((auc(scores[:, 0], positive[:, 0]) + auc(scores[:, 2], positive[:, 2])) / 2)
    assert macro_auc(scores, positive, 60).macro is None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("corpus") / "store"))


@pytest.mark.parametrize("seq_len", [32, 48])
def test_heldout_holds_every_token_and_chunk_once(store: CorpusStore, seq_len: int):
    held = read_heldout(store, seq_len)
    start, end = store.split("heldout")
    np.testing.assert_array_equal(held.tokens[held.valid], store.tokens(start, end))
    assert held.byte_count is None  # ids only
    first, last = store.chunks_between(start, end)
    counts = np.zeros(store.chunk_count, np.int64)
    for _, _, index, first_chunk in held.batches(7):
        np.add.at(counts, (first_chunk[:, None] + index)[index >= 0], 1)
    np.testing.assert_array_equal(counts[first:last], np.diff(store.read("chunk_spans", first, last))[:, 0])
    assert counts[:first].sum() == 0
    assert read_heldout(store, seq_len, most_tokens=3 * seq_len).token_count == 3 * seq_len


def test_figures_do_not_depend_on_the_filled_up_batch(store: CorpusStore):
    config = tiny(block=8, vocab_size=64, concepts=8)
    params = fresh(config)
    held = read_heldout(store, 32)
    found = likelihood(params, held, config, COMPUTE)
    assert found["tokens"] == held.token_count
    assert found["nats_per_token"] == pytest.approx(math.log(64), rel=0.3)  # fresh parameters
    for level in (0.3, 1.0):
        detected = detect(params, held, store, config, COMPUTE, level)
        chunk = detected.chunk[0]
        if level == 1.0:
            assert (detected.visible.tokens == -1).all()
            assert len(detected.chunk) == np.diff(store.chunks_between(*store.split("heldout")))[0]
        assert set(np.flatnonzero(detected.positive[0])) == set(store.chunk(int(chunk)).labels)


@pytest.mark.parametrize(("seq_len", "most"), [(30, None), (64, 512)])
def test_detection_in_sequences_of_any_length_and_of_a_sample(store: CorpusStore, seq_len: int, most: int | None):
    """Sampled sequences may be far apart in a split: only the chunks in them take memory."""
    config = tiny(block=8, vocab_size=64, concepts=8)
    held = read_heldout(store, seq_len, most_tokens=most)
    detected = detect(fresh(config), held, store, config, COMPUTE, 1.0)
    np.testing.assert_array_equal(detected.chunk, held.chunk_numbers)
    first, last = int(detected.chunk[0]), int(detected.chunk[-1]) + 1
    assert (most is None) == (len(detected.chunk) == last - first)
    rows = detected.chunk - first
    np.testing.assert_array_equal(detected.positive, chunk_positives(store, first, last, 8)[rows])
    bags = chunk_bags(store, first, last).take(rows).tokens
    np.testing.assert_array_equal(np.sort(bags_of(store, detected.chunk).tokens), np.sort(bags))
    # At t = 1 masks are certain: a chunk that is here whole has the evidence that it has among all others.
    other = detect(fresh(config), read_heldout(store, seq_len), store, config, COMPUTE, 1.0)
    owners = (held.first_chunk[:, None] + held.chunk_index)[held.chunk_index >= 0]
    sizes = np.diff(store.read("chunk_spans", first, last))[rows, 0]
    here = np.flatnonzero(np.bincount(owners)[detected.chunk] == sizes)
    assert len(here) > 2
    there = np.searchsorted(other.chunk, detected.chunk[here])
    np.testing.assert_allclose(detected.evidence[here], other.evidence[there], rtol=1e-4, atol=1e-6)


def test_report_is_complete(store: CorpusStore):
    config = tiny(block=8, vocab_size=64, concepts=8)
    found = evaluate_full(fresh(config), config, COMPUTE, store, EvaluationConfig(seq_len=32, draws=1))
    assert {"nats_per_token", "cost_epsilon", "concept_share", "baselines", "detection"} <= found.keys()
    assert found["baselines"]["trigram"]["nats_per_token"] == pytest.approx(math.log(60), rel=0.2)  # it is noise
    detection = found["detection"]["0.5"]
    assert {"auc", "auc_random", "probe_whole_text", "probe_visible_text", "by_concept"} <= detection.keys()


def test_length_of_sequences(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The given length, that of the training, or a default, which the command reports."""
    long = dataclasses.replace(tiny(), block_size=1024)
    bundle = Bundle(long, {}, IdsOnlyTokenizer(special_ids_of(long), V), name="a model", folder=tmp_path)
    assert sequence_length(700, bundle) == 700
    with pytest.raises(UserError, match="--seq-len is 2000"):
        sequence_length(2000, bundle)
    assert sequence_length(None, dataclasses.replace(bundle, config=tiny())) == 64
    assert capfd.readouterr().err == ""
    assert sequence_length(None, bundle) == DEFAULT_SEQ_LEN
    assert f"using {DEFAULT_SEQ_LEN} tokens, of a context of 1024" in capfd.readouterr().err
    (tmp_path / "run.json").write_text('{"run": {"data": {"seq_len": 512}}}')
    assert sequence_length(None, bundle) == 512
    assert capfd.readouterr().err == ""


def test_probe_learns_tokens():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 30, (1500, 12)).astype(np.int32)
    tokens[draw.random(tokens.shape) < 0.2] = -1
    positive = np.stack([(tokens == 3).any(axis=1), (tokens == 7).sum(axis=1) > 1], axis=1)
    probe = fit_probe(Bags(tokens[:1200]), positive[:1200], 31)
    found = macro_auc(probe(Bags(tokens[1200:])), positive[1200:], 5)
    assert found.macro is not None
    assert found.macro > 0.97


def test_bags_are_the_chunks(store: CorpusStore):
    bags = chunk_bags(store, 3, 9)
    for row, number in enumerate(range(3, 9)):
        chunk = store.chunk(number)
        np.testing.assert_array_equal(bags.tokens[row][bags.tokens[row] >= 0], store.tokens(chunk.start, chunk.end))

"""A model whose discovered concepts are a dictionary: its logits are sums over concepts, clamps move them exactly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.parameters import load_checkpoint_params, save_params_checkpoint
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.compute import Compute
from steerling_jax.models.geometric_median import geometric_median
from steerling_jax.models.steerling.config import DictionaryConfig, ModelConfig
from steerling_jax.models.steerling.dictionary import dictionary_from_rows
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.models.steerling.heads import Clamps, run_discovered_head
from steerling_jax.models.steerling.model import compiled_forward, param_shapes
from steerling_jax.models.steerling.published_config import config_from_dict, config_to_dict
from tests.worlds.dictionary_world import CONCEPT, MODEL, changed, make_params, tables, tokens

FACTORISED = changed(factorize_unknown=True, factorize_rank=6)
NO_OFFSET = changed(dictionary=DictionaryConfig(offset=False))
SELECTED = 5
FORMS = {"full": MODEL, "rank 6": FACTORISED, "no offset": NO_OFFSET, "streamed": changed(block_size=4)}


@pytest.mark.parametrize("form", FORMS)
def test_every_logit_is_the_sum_over_its_concepts(form: str) -> None:
    """Known and discovered concepts of one position, and the offset, give all logits; there is no rest."""
    config = FORMS[form]
    params = make_params(config)
    logits, found = compiled_forward(params, tokens(), config=config)
    keys, bias, embeddings = tables(params)
    output = np.asarray(params["tok_emb"]["weight"], np.float64)
    known = np.asarray(params["known_head"]["concept_embedding"]["weight"], np.float64)
    offset = np.asarray(params["unknown_head"]["offset"]["bias"]) if form != "no offset" else np.zeros(16)
    count = CONCEPT.n_unknown_concepts
    used = 0
    for b, t in ((0, 0), (0, 13), (1, 23)):
        hidden = np.asarray(found.hidden[b, t], np.float64)
        scores = keys[:count] @ hidden + bias[:count]
        selected = np.argsort(-scores)[:SELECTED]
        np.testing.assert_array_equal(np.asarray(found.unknown_topk_indices[b, t]), selected)
        weights = np.maximum(scores[selected], 0)
        used += int((weights > 0).sum())
        k = 1 / (1 + np.exp(-np.asarray(found.known_topk_logits[b, t], np.float64)))
        composed = k @ known[found.known_topk_indices[b, t]] + weights @ embeddings[selected] + offset
        np.testing.assert_allclose(np.asarray(logits[b, t]), output @ composed, atol=3e-5)
    assert used > 3
    assert found.epsilon is None
    assert float(jnp.abs(found.unk_for_lm + found.known_features - found.composed).max()) < 1e-6


@pytest.mark.parametrize("form", ["full", "rank 6", "streamed"])
def test_dense_weights_give_the_sparse_features(form: str) -> None:
    config = FORMS[form]
    params = make_params(config)
    head = run_discovered_head(params, jax.random.normal(jax.random.key(5), (7, 16)), config, Compute(), dense=True)
    assert head is not None
    embeddings = tables(params)[2][: CONCEPT.n_unknown_concepts]
    assert int((np.asarray(head.weights) > 0).sum(axis=1).max()) <= SELECTED
    np.testing.assert_allclose(np.asarray(head.features), np.asarray(head.weights) @ embeddings, atol=2e-5)


@pytest.mark.parametrize("rule", ["published", "frozen"])
@pytest.mark.parametrize("large", [0, 50_000])
def test_a_clamp_moves_the_logits_by_its_own_part(rule: str, large: int) -> None:
    """Under either rule and by either form: (value − weight) · E_c, with the weight 0 where it was not selected."""
    params = make_params(MODEL)
    before, found = compiled_forward(params, tokens(), config=MODEL)
    b, t = 1, 9
    listed = int(found.unknown_topk_indices[b, t, 0])
    absent = int(np.setdiff1d(np.arange(21), np.asarray(found.unknown_topk_indices[b, t]))[0])
    positions = jnp.zeros((2, 24), bool).at[b, t].set(True).reshape(-1)
    clamps = Clamps(jnp.array([listed, absent]), jnp.array([0.0, 2.5]), positions)
    after, _ = compiled_forward(params, tokens(), config=MODEL, discovered_clamps=clamps, epsilon=rule, large=large)
    embeddings = tables(params)[2]
    moved = 2.5 * embeddings[absent] - max(float(found.unknown_topk_logits[b, t, 0]), 0) * embeddings[listed]
    expected = np.zeros((2, 24, 20))
    expected[b, t] = np.asarray(params["tok_emb"]["weight"]) @ moved
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(np.asarray(after - before), expected, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_files_are_read_back(form: str, tmp_path: Path) -> None:
    config = FORMS[form]
    params = make_params(config)
    write_published(tmp_path / "model", config, params)
    again, read, _ = read_published(tmp_path / "model")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    save_params_checkpoint(tmp_path / "checkpoint", config, params)
    saved, loaded = load_checkpoint_params(tmp_path / "checkpoint")
    assert saved == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert fingerprint(read, again) == fingerprint(params, config)


def test_the_published_layout_rejects_a_dictionary(golden: Path) -> None:
    """A published reader knows the fields of golden files alone, and names the one it does not know."""
    written = config_to_dict(MODEL)
    published = json.loads((golden / "base" / "config.json").read_text())
    assert set(written["concept"]) - set(published["concept"]) == {"dictionary"}
    assert set(written) == set(published)
    with pytest.raises(UserError, match="Hub's layout"):
        config_to_dict(MODEL, "hub")


def test_models_without_a_dictionary_are_written_as_before(golden: Path) -> None:
    raw = json.loads((golden / "base" / "config.json").read_text())
    config, _, _ = config_from_dict(raw)
    assert "dictionary" not in config_to_dict(config)["concept"]
    assert "dictionary" not in config_to_dict(config, "hub")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dictionary": 3}, "concept.dictionary is 3"),
        ({"dictionary": {"ofset": True}}, "did you mean 'concept.dictionary.offset'"),
        ({"dictionary": {"offset": 1}}, "offset is 1"),
        ({"dictionary": {"format": 2}}, "dictionary.format is 2"),
        ({"unknown_topk": None}, "unknown_topk is None"),
        ({"use_unknown": False}, "use_unknown is False"),
        ({"use_attention_unknown": True}, "use_attention_unknown is True"),
    ],
)
def test_invalid_dictionaries_are_rejected_by_name(fields: dict, message: str) -> None:
    raw = config_to_dict(MODEL)
    raw["concept"] |= fields
    with pytest.raises(UserError, match=message):
        config_from_dict(raw)


@pytest.mark.parametrize("config", [MODEL, FACTORISED, changed(factorize_unknown=True, factorize_rank=20)])
def test_a_dictionary_from_rows_fits_them(config: ModelConfig) -> None:
    """The offset is the rows' geometric median, embeddings have length 1, and the first fit explains some variance."""
    rows = jax.random.normal(jax.random.key(0), (300, 16)) * jnp.linspace(0.2, 3, 16)[None, :] + 4.0
    rows = jnp.concatenate([rows, jnp.full((5, 16), 1e3)])  # extreme rows do not move the median
    weight = jnp.ones(305).at[0].set(0.0)
    params = dictionary_from_rows(make_params(config), rows, weight, jax.random.key(1), config=config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, param_shapes(config))
    middle = np.asarray(params["unknown_head"]["offset"]["bias"])
    assert np.abs(middle - 4).max() < 1.0
    pull = (np.asarray(rows[1:]) - middle) / np.linalg.norm(np.asarray(rows[1:]) - middle, axis=1, keepdims=True)
    assert np.linalg.norm(pull.sum(axis=0)) < 0.1  # the gradient of the sum of distances
    np.testing.assert_allclose(np.linalg.norm(tables(params)[2], axis=1), 1, atol=1e-5)


def test_the_first_fit_explains_variance() -> None:
    rows = jax.random.normal(jax.random.key(0), (300, 16)) * jnp.linspace(0.2, 3, 16)[None, :] + 4.0
    params = dictionary_from_rows(make_params(MODEL), rows, jnp.ones(300), jax.random.key(1), config=MODEL)
    head = run_discovered_head(params, rows, MODEL, Compute())
    assert head is not None
    centred = rows - params["unknown_head"]["offset"]["bias"][None, :]
    assert float(jnp.sum((centred - head.features) ** 2)) < 0.6 * float(jnp.sum(centred**2))


def test_the_median_of_a_line() -> None:
    rows = jnp.array([[0.0], [1.0], [2.0], [50.0], [7.0]])
    assert float(geometric_median(rows, jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]))[0]) == pytest.approx(1.5, abs=0.51)


def test_published_numbers_stay(golden: Path) -> None:
    """The fingerprint of a model without a dictionary does not depend on there being such a field."""
    config, params, _ = read_published(golden / "base")
    assert ", dictionary=None" in repr(config)
    assert fingerprint(params, config) != fingerprint(params, dataclasses.replace(config, norm_eps=1e-6))

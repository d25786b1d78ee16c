"""`sj.embed` of one text and of several: values, pooling, padding and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.evaluation.embeddings import Kind
from steerling_jax.models.batching import padded_length


@pytest.fixture(scope="module")
def bundle(golden):
    return sj.load(golden / "no_epsilon")


def test_embeddings_are_the_decomposition(bundle):
    ids = [5, 9, 40, 3]
    parts = sj.forward(bundle, ids).decomposition
    fields: dict[Kind, Any] = {
        "hidden": parts.hidden,
        "composed": parts.composed,
        "known": parts.known_features,
        "discovered": parts.unk_hat,
    }
    for kind, expected in fields.items():
        rows = sj.embed(bundle, ids, kind, pooling="none")
        np.testing.assert_allclose(rows, expected[0], atol=1e-5)
        np.testing.assert_allclose(sj.embed(bundle, ids, kind), rows.mean(axis=0), atol=1e-6)
        np.testing.assert_array_equal(sj.embed(bundle, ids, kind, pooling="last"), rows[-1])
        np.testing.assert_array_equal(sj.embed(bundle, ids, kind, pooling="first"), rows[0])


def test_embedding_without_a_discovered_head(golden):
    """As published: hidden − known features stand in for the discovered ones."""
    bundle = sj.load(golden / "known_only")
    parts = sj.forward(bundle, [5, 9, 40, 3]).decomposition
    rows = sj.embed(bundle, [5, 9, 40, 3], "discovered", pooling="none")
    assert parts.known_features is not None
    np.testing.assert_allclose(rows, parts.hidden[0] - parts.known_features[0], atol=1e-5)


def test_several_texts_have_the_embeddings_of_each_one(bundle):
    """Lengths within a block of 16, at its edge and over several; also against `forward`, which pads nothing."""
    random = np.random.default_rng(0)
    texts = [random.integers(0, 290, length).tolist() for length in (3, 16, 17, 40, 1, 32)]
    rows = sj.embed(bundle, texts, "known", pooling="none", batch_size=3)
    assert [len(found) for found in rows] == [len(text) for text in texts]
    whole = sj.forward(bundle, texts[3]).decomposition.known_features
    assert whole is not None
    np.testing.assert_allclose(rows[3], whole[0], atol=2e-5)
    poolings: tuple[Literal["mean", "last", "first"], ...] = ("mean", "last", "first")
    for pooling in poolings:
        stacked = sj.embed(bundle, texts, "known", pooling, batch_size=3)
        alone = np.stack([sj.embed(bundle, ids, "known", pooling) for ids in texts])
        assert stacked.shape == (6, bundle.config.n_embd)
        np.testing.assert_allclose(stacked, alone, atol=2e-5)


def test_strings_and_arrays_are_texts_too(bundle):
    """This model folder has no vocabulary, so that text is ids in decimal."""
    ids = sj.embed(bundle, [[5, 9], [40]])
    np.testing.assert_array_equal(sj.embed(bundle, ["5 9", "40"]), ids)
    np.testing.assert_array_equal(sj.embed(bundle, np.array([[5, 9]])), ids[:1])
    np.testing.assert_allclose(sj.embed(bundle, np.array([5, 9])), ids[0], atol=1e-6)


def test_few_programs_serve_all_lengths(golden):
    """After texts of 16, 32 and 48 tokens, shorter ones need no new program."""
    bundle = sj.load(golden / "backbone")
    sj.embed(bundle, [[7] * length for length in (16, 32, 48)], batch_size=8)
    with jax.no_tracing():
        sj.embed(bundle, [[7] * length for length in range(1, 49)], batch_size=8)


def test_padded_lengths(bundle):
    """Whole blocks, never shorter than the text, never beyond the context, at most half as long again."""
    config = dataclasses.replace(bundle.config, block_size=4090, diff_block_size=64)
    lengths = range(1, config.block_size + 1)
    padded = [padded_length(length, config) for length in lengths]
    for length, found in zip(lengths, padded, strict=True):
        assert length <= found <= min(4090, max(64, 1.5 * (length + 64)))
        assert found % 64 == 0 or found == 4090
    assert len(set(padded)) == 12


def test_invalid_arguments(bundle, golden):
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"text_or_ids": ""}, "empty"),
        ({"text_or_ids": []}, "empty"),
        ({"text_or_ids": [[1], []]}, "text 1 is empty"),
        ({"text_or_ids": [[1], [300]]}, "text 1 holds the id 300, outside the vocabulary"),
        ({"text_or_ids": [300]}, "outside the vocabulary"),
        ({"text_or_ids": [1] * 257}, "context of 256"),
        ({"text_or_ids": [1], "kind": "unknown"}, "kind"),
        ({"text_or_ids": [1], "pooling": "max"}, "pooling"),
        ({"text_or_ids": [1], "batch_size": 0}, "batch_size"),
    )
    for arguments, words in cases:
        with pytest.raises(sj.UserError, match=words):
            sj.embed(bundle, **arguments)
    with pytest.raises(sj.UserError, match="needs a model with concepts"):
        sj.embed(sj.load(golden / "backbone"), [1], "known")

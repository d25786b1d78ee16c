"""Names of concepts: units of text, selection on one half, scores on the other, activations, and texts of a corpus."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.evaluation.detection import auc
from steerling_jax.explain.naming.activations import chunk_means, sample_chunks
from steerling_jax.explain.naming.appearing import appearing_concepts, document_trace, fixed_texts
from steerling_jax.explain.naming.selection import active_texts, propose_names, score_names
from steerling_jax.explain.naming.units import Vocabulary, name_units, text_units
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.head_view import discovered_spec
from steerling_jax.models.steerling.heads import run_head
from tests.worlds.small_store import write_store
from tests.worlds.topic_world import KNOWS, about_topic, config

COMMON = [f"w{letter}" for letter in "abcdefghijklmnopqrst"]


def units(text: str) -> list[str]:
    return [unit for unit, _ in text_units(text)]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("return returns returned returning Returns", 1),
        ("value values", 1),
        ("class classes clas", 2),  # -ss is kept
        ("string str", 2),
        ("http_server http server", 2),
    ],
)
def test_endings_do_not_make_other_units(words: str, count: int):
    assert len({unit for unit in units(words) if unit != "_"}) == count


def test_symbols_numbers_and_layout_are_units():
    assert units("f(x) -> 12") == ["f", "(", "x", ")", "->", "<number>"]
    assert units("a\nb\n\n  c") == ["a", "<line break>", "b", "<line break>", "<blank line>", "<indentation>", "c"]
    assert name_units("Returns · blank lines, -> and numbers") == ["return", "->", "and", "<blank line>", "<number>"]


def test_weights_are_those_of_bm25():
    texts = ["a b b", "a c", "a a a a"]
    vocabulary = Vocabulary.of(texts, at_least=1)
    table = vocabulary.weights(["b b x", ""]).toarray()
    rarity, length = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5)), 3.0
    assert table[0, vocabulary.numbers["b"]] == pytest.approx(rarity * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / length)))
    assert table.sum() == pytest.approx(table[0, vocabulary.numbers["b"]])  # x is unknown, the other text is empty
    assert "a" not in Vocabulary.of(texts, at_least=4).numbers


def make_half(seed: int, m: int = 400) -> tuple[list[str], np.ndarray]:
    """Texts with the activations of three concepts: of two words, of one, and of nothing in the text."""
    draw = np.random.default_rng(seed)
    texts, activations = [], np.zeros((m, 3), np.float32)
    for row in range(m):
        words = draw.choice(COMMON, 12).tolist()
        for word, column, share in (("heron", 0, 0.04), ("marsh", 0, 0.04), ("tide", 1, 0.06)):
            if draw.random() < share:
                words[int(draw.integers(12))] = word
                activations[row, column] = 1 + draw.random()
        texts.append(" ".join(words))
    activations[:, 2] = draw.random(m)
    return texts, activations


def test_names_are_the_words_that_predict_the_activation_in_other_texts():
    vocabulary, (birds, tide, noise) = propose_names(make_half(0), make_half(1))
    assert set(birds.words) == {"heron", "marsh"}
    assert tide.words[0] == "tide"
    for one in (birds, tide):
        assert one.quality is not None
        assert one.quality.auc > 0.95
        assert one.quality.others is not None
        assert one.quality.others < 0.7
    # A word can always be found for noise, but not one that predicts it elsewhere.
    assert noise.quality is None or abs(noise.quality.auc - 0.5) < 0.2
    assert vocabulary.spelled[vocabulary.numbers["heron"]] == "heron"


def test_a_score_is_the_area_of_the_summed_weights():
    texts, activations = make_half(2)
    vocabulary = Vocabulary.of(make_half(0)[0])
    names = [vocabulary.find(name_units(name)) for name in ("heron", "tides", "unheard of")]
    found = score_names(vocabulary, texts, activations, names)
    scores = vocabulary.weights(texts).toarray()
    active = active_texts(activations)
    own = auc(scores[:, names[0][0]], active[:, 0])
    other = auc(scores[:, names[1][0]], active[:, 0])
    assert found[0] is not None
    assert (found[0].auc, found[0].others) == (pytest.approx(own), pytest.approx(other))
    assert (found[0].active, found[0].texts) == (active[:, 0].sum(), 400)
    assert 0 < found[0].error < 0.1
    assert found[2] is None  # no words


def test_promoted_tokens_are_candidates_and_rare_concepts_have_no_score():
    texts, activations = make_half(0)
    activations[:, 1] = 0
    activations[:4, 1] = 1  # too few texts
    _, proposals = propose_names((texts, activations), make_half(1), [["heron"], [" Tide"], ["zzz"]])
    assert proposals[0].words[0] in ("heron", "marsh")
    assert (proposals[1].words, proposals[1].quality) == ((), None)


def test_active_texts_are_the_largest_and_above_zero():
    activations = np.zeros((200, 3), np.float32)
    activations[:, 0] = np.arange(200)
    activations[:7, 1] = 1.0
    activations[:3, 2] = 1.0  # too few
    active = active_texts(activations)
    assert active.sum(axis=0).tolist() == [10, 7, 0]
    assert active[-10:, 0].all()


def test_activations_are_those_of_every_position_under_a_mask(topic_bundle: Bundle, topic_store: CorpusStore):
    """A chunk's mean does not depend on the batches, and is that of a plain pass with the same masks."""
    first, last = topic_store.chunks_between(*topic_store.split("heldout"))
    ranges = [(first, first + 3), (first + 40, last)]
    numbers, means = chunk_means(topic_bundle, topic_store, "discovered", [KNOWS, 2], ranges, seq_len=64)
    assert numbers.tolist() == [*range(first, first + 3), *range(first + 40, last)]
    topical = about_topic(topic_store, numbers)
    assert auc(means[:, 0], topical) > 0.75
    spec = discovered_spec(config().concept)  # type: ignore[arg-type]
    assert spec is not None
    spans = topic_store.read("chunk_spans", first, first + 3)
    tokens = topic_store.tokens(int(spans[0, 0]), int(spans[-1, 1])).astype(np.int32)
    canvas = np.full((64, 64), topic_store.special.pad_id, np.int32)
    canvas.reshape(-1)[: len(tokens)] = tokens
    masked = np.asarray(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0), canvas.shape) < 0.5)
    weights = []
    for where in (masked, ~masked):
        noisy = np.where(where, config().mask_token_id, canvas)
        hidden = denoise(
            topic_bundle.params,
            jnp.asarray(canvas),
            jnp.asarray(noisy),
            config=config(),
            compute=topic_bundle.compute,
            clean_context=True,
        )
        run = run_head(
            topic_bundle.params["unknown_head"], hidden.reshape(-1, 32), spec, topic_bundle.compute, dense=True
        )
        weights.append(np.asarray(run.weights)[:, KNOWS])
    both = np.where(masked.reshape(-1), *weights)
    start = int(spans[0, 0])
    expected = [both[low - start : high - start].mean() for low, high in spans.tolist()]
    np.testing.assert_allclose(means[:3, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_sample_of_chunks_is_spread_over_the_split(topic_store: CorpusStore, tmp_path):
    first, last = topic_store.chunks_between(*topic_store.split("train"))
    assert sample_chunks(topic_store, "train", 10**9) == [(first, last)]
    ranges = sample_chunks(topic_store, "train", 1500)
    assert ranges[0][0] == first
    assert ranges[-1][0] > (first + last) // 2
    assert all(low < high <= following for (low, high), (following, _) in itertools.pairwise(ranges))
    with pytest.raises(UserError, match="has no heldout documents"):
        sample_chunks(write_store(tmp_path / "store", [[5], [6]]), "heldout", 100)


def test_the_list_of_texts_depends_on_the_documents_alone(topic_store: CorpusStore, topic_bundle: Bundle):
    names = [one.name for one in fixed_texts(topic_store, 6)]

    class Reordered:
        documents = topic_store.documents[::-1]

    assert [one.name for one in fixed_texts(Reordered(), 6)] == names  # type: ignore[arg-type]
    assert [one.name for one in fixed_texts(topic_store, 6, seed=1)] != names
    assert {one.split for one in fixed_texts(topic_store, 99)} == {"heldout"}
    traces = [document_trace(topic_bundle, topic_store, one) for one in fixed_texts(topic_store, 2)]
    assert [len(one.tokens) for one in traces] == [64, 64]  # the model's context
    ids = appearing_concepts(topic_bundle, traces, "discovered", top=2)
    assert ids
    assert ids <= appearing_concepts(topic_bundle, traces, "discovered", top=4) <= set(range(24))

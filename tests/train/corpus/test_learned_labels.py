"""Concepts learned from examples, over hashed words and over the hidden states of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.evaluation.logistic import fit_logistic
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.learned_labels import LearnedLabels, hashed_words, learn, model_embeddings
from steerling_jax.train.corpus.ontology import ConceptDefinition

SEA = [
    "The boat sails on the sea.",
    "Waves rock the boat.",
    "Sails fill with wind at sea.",
    "A harbour for the boat.",
    "The sea has high waves today.",
]
LAND = ["The train runs on rails.", "A field of wheat.", "The car is on the road.", "Houses line the road."]


def concept(
    id: int, examples: Sequence[str], counterexamples: Sequence[str] = (), most: float = 0.1
) -> ConceptDefinition:
    return ConceptDefinition(
        id, f"c{id}", "topic", "d", examples=tuple(examples), counterexamples=tuple(counterexamples), most=most
    )


def test_learned_concepts():
    background = [f"The {a} is on the {b} today." for a in ("cat", "dog", "cup", "hat") for b in ("mat", "bed", "box")]
    learned = learn([concept(4, SEA[:4], LAND[:2]), concept(9, LAND[2:] * 2)], background, hashed_words)
    new = [TextChunk(text, 0) for text in ("The boat meets the waves.", "A cup of tea.", "Cars on the road.")]
    document = Document("d", "text", "")
    assert learned.annotate(document, new) == [[4], [], [9]]
    assert learned.annotate(document, []) == []
    again = type(learned).from_bytes(learned.to_bytes(), hashed_words)
    assert again.annotate(document, new) == [[4], [], [9]]


def test_learned_over_a_models_states():
    """The bundled model's embeddings generalise to words that are in no example."""
    examples = [
        "Open a socket and connect to the server.",
        "The client sends the request to a remote host.",
        "A TCP connection is accepted on this port.",
        "Bind the address, then listen.",
    ]
    others = ["Sort the list in ascending order.", "The date is formatted with strftime.", "Compile the pattern."]
    background = ["Returns the name of the file.", "Raise ValueError if it is empty.", "A thread waits for the lock."]
    learned = learn([concept(0, examples, others)], background, model_embeddings("steerling-pydocs"))
    new = ["The server socket is closed.", "Send bytes over the network.", "The matrix of integers.", "Add the hours."]
    found = learned.annotate(Document("d", "text", ""), [TextChunk(text, 0) for text in new])
    assert found == [[0], [0], [], []]


def test_no_more_than_the_share_is_labelled():
    """Also if all of the corpus is about the concept: `most` is an upper bound, not an estimate."""
    background = [f"The boat sails, and number {i} waves." for i in range(100)]
    learned = learn([concept(0, SEA, most=0.05)], background, hashed_words)
    chunks = [TextChunk(text, 0) for text in background]
    assert sum(map(len, learned.annotate(Document("d", "text", ""), chunks))) <= 5


def test_a_score_at_the_threshold_is_not_above_it():
    """The threshold is the score of a background chunk: that chunk, and all that are equal to it, have no label."""
    zeros, thresholds = np.zeros((3, 2), np.float32), np.array([0.5, 0.25], np.float32)
    labels = LearnedLabels(
        np.array([4, 9], np.int32), zeros, np.full(2, 0.5, np.float32), thresholds, zeros[:, 0],
        lambda texts: np.ones((len(texts), 3), np.float32),
    )  # fmt: skip
    assert labels.annotate(Document("d", "text", ""), [TextChunk("a", 0)]) == [[9]]


def test_logistic_regression_finds_the_separating_side():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    positive = np.stack([features[:, 0] > 1, features[:, 1] + features[:, 2] < 0], 1)
    used = np.ones_like(positive)
    used[:50, 1] = False
    fitted = fit_logistic(features, positive, used, decay=1e-4)
    assert ((fitted.scores(features) > 0) == positive).mean(axis=0).min() > 0.93
    positive[:50, 1] ^= True  # unused rows have no effect
    np.testing.assert_allclose(fit_logistic(features, positive, used, decay=1e-4).weights, fitted.weights, atol=1e-6)

"""The n-gram baselines compared with a plain implementation with dictionaries; their probabilities sum to one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from steerling_jax.train.evaluation.ngrams import NgramModel, count_ngrams

V = 7


def text(length: int, seed: int = 0) -> np.ndarray:
    """Skewed noise in which pairs repeat, without the last of the V tokens."""
    draw = np.random.default_rng(seed)
    pieces = [(0, 1, 2), (3,), (0, 1, 4), (2, 2), (5,)]
    picks = draw.choice(len(pieces), length, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    return np.concatenate([pieces[i] for i in picks])[:length]


def fit_ngrams(tokens: np.ndarray, order: int, vocab_size: int) -> NgramModel:
    return count_ngrams(tokens, order, vocab_size).model(order)


def brute_probability(tokens: list[int], history: tuple[int, ...], word: int, order: int) -> float:
    """P(word | history) by the definition, recursing from the highest order down."""
    grams = {n: Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(1, order + 1)}
    counts = {n: grams[n] if n == order else Counter(gram[1:] for gram in grams[n + 1]) for n in range(1, order + 1)}

    def discount(n: int, count: int) -> float:
        t = [sum(c == k for c in counts[n].values()) for k in range(5)]
        if count == 0:
            return 0.0
        if not t[1] or not t[2]:
            return 0.5
        y = t[1] / (t[1] + 2 * t[2])
        d = [0.0, 1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3] if t[3] else None]
        d[3] = d[2] if d[3] is None else d[3]
        k = min(count, 3)
        return min(max(d[k], 0.1), k - 0.1)

    def p(history: tuple[int, ...]) -> float:
        n = len(history) + 1
        below = p(history[1:]) if history else 1 / V
        after = {w: counts[n][(*history, w)] for w in range(V)}
        total = sum(after.values())
        if not total:
            return below
        freed = sum(discount(n, c) for c in after.values())
        return (after[word] - discount(n, after[word]) + freed * below) / total

    return p(history)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [40, 400])
def test_probabilities_equal_the_definition(order: int, length: int):
    train, held_out = text(length), text(30, seed=1)
    held_out[7] = V - 1  # not in training
    got = np.exp(fit_ngrams(train, order, V).log_probabilities(held_out))
    for i, word in enumerate(held_out.tolist()):
        history = tuple(held_out[max(0, i - order + 1) : i].tolist())
        assert got[i] == pytest.approx(brute_probability(train.tolist(), history, word, order), rel=1e-9)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one(order: int):
    model = fit_ngrams(text(300), order, V)
    for history in ([0, 1, 2, 0], [6, 6, 6, 6], [5, 5, 0, 1], [2, 2, 2, 6]):
        total = sum(np.exp(model.log_probabilities(np.array([*history, word]))[-1]) for word in range(V))
        assert total == pytest.approx(1.0, abs=1e-12)


def test_lower_orders_from_the_same_counts():
    counts, held_out = count_ngrams(text(300), 5, V), text(50, seed=2)
    np.testing.assert_array_equal(
        counts.model(3).log_probabilities(held_out), fit_ngrams(text(300), 3, V).log_probabilities(held_out)
    )


@pytest.mark.parametrize("train", [[3], [3, 3], [0, 1]])
def test_very_short_texts(train: list[int]):
    model = fit_ngrams(np.array(train), 5, V)
    assert np.isfinite(model.log_probabilities(np.array([3, 0, 1, 6, 3, 3]))).all()
    assert model.log_probabilities(np.zeros(0, np.int64)).shape == (0,)


def test_keys_fit_for_large_vocabularies():
    tokens = np.array([100_280, 7, 100_280, 7, 100_280, 3])
    model = fit_ngrams(tokens, 5, 100_281)
    assert model.log_probabilities(tokens).argmax() in (3, 4)

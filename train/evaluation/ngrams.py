"""Baselines that count: n-gram models of tokens, by interpolated modified Kneser–Ney smoothing.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999), with one discount
each for counts of 1, 2 and more, per order. The highest order uses counts, the lower ones the number of different
tokens that an n-gram was seen after; the unigram is interpolated with the uniform distribution over the vocabulary.

The text is one stream, special tokens included, so a document may be predicted from the end of the one before it. Every
token is predicted once, and the bytes are those of the text: what closes chunks and documents costs bits and carries no
bytes. `steerling_jax.evaluation` counts the model's bits in the same way.

An n-gram is known by the number of its first n − 1 tokens' n-gram and its last token, which fit in one int64 for any
vocabulary. Legend: N tokens, G distinct n-grams of an order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_UNSEEN = -1


@dataclass(frozen=True)
class Order:
    """One order's table. keys (G,) int64 sorted, what identifies an n-gram; discounted (G,) float64, its count less the
    discount. By its first n − 1 tokens: total, the sum of counts, and freed, what the discounts left over.
    """

    keys: np.ndarray
    discounted: np.ndarray
    total: np.ndarray
    freed: np.ndarray


@dataclass(frozen=True)
class NgramModel:
    """orders[n − 1] is the table of n-grams."""

    vocab_size: int
    orders: tuple[Order, ...]

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Natural logarithm of each token's probability after those before it, (N,) float64 for tokens (N,).

        The first tokens have what context there is.
        """
        tokens = np.asarray(tokens, np.int64)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        # The n-gram that starts at each token, and its first n − 1 tokens'; of the empty one there is only one.
        context = np.zeros(len(tokens), np.int64)
        for n, order in enumerate(self.orders, 1):
            if n > len(tokens):
                break
            start = len(tokens) - n + 1
            context = context[:start]
            found = _find(order.keys, _keys(context, tokens[n - 1 :], self.vocab_size))
            seen = (context != _UNSEEN) & (order.total[context] > 0)
            count = np.where(found != _UNSEEN, order.discounted[found], 0.0)
            total = np.where(seen, order.total[context], 1.0)
            p[n - 1 :] = np.where(seen, (count + order.freed[context] * p[n - 1 :]) / total, p[n - 1 :])
            context = found
        return np.log(p)


def fit_ngrams(tokens: np.ndarray, order: int, vocab_size: int) -> NgramModel:
    """Counts tokens (N,) into a model of n-grams up to `order` ≥ 1."""
    return count_ngrams(tokens, order, vocab_size).model(order)


@dataclass(frozen=True)
class Counts:
    """Counts of every order's n-grams, from which models of any lower order are made. A list item an order: keys, as in
    `Order`, count, tails, from how many different tokens an n-gram was seen after, and contexts, the number of its
    first n − 1 tokens."""

    vocab_size: int
    keys: list[np.ndarray]
    count: list[np.ndarray]
    tails: list[np.ndarray]
    contexts: list[np.ndarray]

    def model(self, order: int) -> NgramModel:
        order = min(order, len(self.keys))
        tables = []
        for n in range(order):
            count = self.count[n] if n == order - 1 else self.tails[n]
            tables.append(_table(self.keys[n], count, self.contexts[n], len(self.keys[n - 1]) if n else 1))
        return NgramModel(self.vocab_size, tuple(tables))


def count_ngrams(tokens: np.ndarray, order: int, vocab_size: int) -> Counts:
    """Counts the n-grams of tokens (N,) up to `order`, in some hundred bytes of memory a token."""
    tokens = np.asarray(tokens, np.int64)
    counts = Counts(vocab_size, [], [], [], [])
    numbers = np.zeros(len(tokens), np.int64)  # of the (n − 1)-gram that starts at each place
    for n in range(1, min(order, len(tokens)) + 1):
        places = len(tokens) - n + 1
        keys, first, inverse, count = np.unique(
            _keys(numbers[:places], tokens[n - 1 :], vocab_size),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if n > 1:
            counts.tails.append(np.bincount(numbers[first + 1], minlength=len(counts.keys[-1])))
        counts.keys.append(keys)
        counts.count.append(count)
        counts.contexts.append(numbers[first])
        numbers = inverse
    return counts


def _table(keys: np.ndarray, count: np.ndarray, context: np.ndarray, contexts: int) -> Order:
    discount = _discounts(count)[np.minimum(count, 3)]
    total, freed = (np.bincount(context, values, minlength=contexts) for values in (count, discount))
    return Order(keys, count - discount, total, freed)


def _discounts(count: np.ndarray) -> np.ndarray:
    """Discounts (4,) of counts 0, 1, 2 and more, from how many n-grams have which count."""
    ones, twos, threes, fours = (int(np.sum(count == k)) for k in (1, 2, 3, 4))
    if not ones or not twos:  # too little text to estimate from
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = ones / (ones + 2 * twos)
    d1 = 1 - 2 * y * twos / ones
    d2 = 2 - 3 * y * threes / twos
    d3 = 3 - 4 * y * fours / threes if threes else d2
    # Counts of counts that do not fall off, as small texts have them, would give discounts out of range.
    return np.array([0.0, *(np.clip(d, 0.1, k - 0.1) for k, d in enumerate((d1, d2, d3), 1))])


def _keys(context: np.ndarray, token: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.where(context == _UNSEEN, _UNSEEN, context * vocab_size + token)


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key is in sorted `keys`, or −1."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, _UNSEEN)

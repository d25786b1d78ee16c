"""N-gram models of tokens as baselines, with interpolated modified Kneser–Ney smoothing.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999), with one discount
each for counts of 1, 2 and more, per order. The highest order uses counts, the lower ones the number of different
tokens that an n-gram was seen after; the unigram is interpolated with the uniform distribution over the vocabulary.

The text is one stream, special tokens included, so a document may be predicted from the end of the previous one. Every
token is predicted once, and the bytes are those of the text: tokens that end a chunk or a document cost bits and have
no bytes. `steerling_jax.evaluation` counts the model's bits in the same way.

The key of an n-gram is (the number of the (n − 1)-gram of its first tokens) · vocabulary size + its last token. It fits
in an int64 for any n, where n token ids would not. Legend: N tokens, G distinct n-grams of an order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_UNSEEN = -1


@dataclass(frozen=True)
class Order:
    """The table of one order.

    keys: (G,) int64, sorted. discounted: (G,) float64, the count of each n-gram minus its discount.
    total, freed: by number of the (n − 1)-gram of the first tokens, the sums of counts and of discounts.
    """

    keys: np.ndarray
    discounted: np.ndarray
    total: np.ndarray
    freed: np.ndarray


@dataclass(frozen=True)
class NgramModel:
    """An interpolated model; orders[n − 1] is the table of n-grams."""

    vocab_size: int
    orders: tuple[Order, ...]

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of each token given those before it: (N,) float64 for tokens (N,).

        The first tokens have a shorter context. Each order interpolates with the one below,
        p_n = (discounted count + freed · p_{n−1}) / total, from the uniform distribution up.
        """
        tokens = np.asarray(tokens, np.int64)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        # The number of the (n − 1)-gram that starts at each token, _UNSEEN where training has none; the empty one is 0.
        context = np.zeros(len(tokens), np.int64)
        for n, order in enumerate(self.orders, 1):
            if n > len(tokens):
                break
            start = len(tokens) - n + 1
            context = context[:start]
            number = _find(order.keys, _keys(context, tokens[n - 1 :], self.vocab_size))
            seen = (context != _UNSEEN) & (order.total[context] > 0)
            count = np.where(number != _UNSEEN, order.discounted[number], 0.0)
            total = np.where(seen, order.total[context], 1.0)
            p[n - 1 :] = np.where(seen, (count + order.freed[context] * p[n - 1 :]) / total, p[n - 1 :])
            context = number
        return np.log(p)


@dataclass(frozen=True)
class Counts:
    """Counts of the n-grams of all orders, for models of this order and lower ones. Lists have an item for each order.

    keys: as in `Order`. count: occurrences. contexts: the number of the (n − 1)-gram of the first tokens.
    tails: the number of different tokens after which an n-gram occurs, which lower orders use in place of the count.
    """

    vocab_size: int
    keys: list[np.ndarray]
    count: list[np.ndarray]
    tails: list[np.ndarray]
    contexts: list[np.ndarray]

    def model(self, order: int) -> NgramModel:
        """The model of n-grams up to `order`."""
        order = min(order, len(self.keys))
        tables = []
        for n in range(order):
            count = self.count[n] if n == order - 1 else self.tails[n]
            tables.append(_table(self.keys[n], count, self.contexts[n], len(self.keys[n - 1]) if n else 1))
        return NgramModel(self.vocab_size, tuple(tables))


def count_ngrams(tokens: np.ndarray, order: int, vocab_size: int) -> Counts:
    """Counts the n-grams of tokens (N,) up to `order`; needs some hundred bytes of memory per token."""
    tokens = np.asarray(tokens, np.int64)
    counts = Counts(vocab_size, [], [], [], [])
    numbers = np.zeros(len(tokens), np.int64)  # of the (n − 1)-gram that starts at each token
    for n in range(1, min(order, len(tokens)) + 1):
        starts = len(tokens) - n + 1
        keys, first, inverse, count = np.unique(
            _keys(numbers[:starts], tokens[n - 1 :], vocab_size),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if n > 1:
            # Each n-gram, counted once, adds one to its last n − 1 tokens, which start one token later.
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
    """Discounts (4,) of the counts 0, 1, 2 and more, from n_k, the number of n-grams with count k.

    D_k = k − (k + 1) Y n_{k+1} / n_k with Y = n_1 / (n_1 + 2 n_2) (Chen and Goodman).
    """
    ones, twos, threes, fours = (int(np.sum(count == k)) for k in (1, 2, 3, 4))
    if not ones or not twos:  # too little text to estimate from
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = ones / (ones + 2 * twos)
    d1 = 1 - 2 * y * twos / ones
    d2 = 2 - 3 * y * threes / twos
    d3 = 3 - 4 * y * fours / threes if threes else d2
    # In small texts, counts of counts may not decrease, and the formula may give discounts out of range.
    return np.array([0.0, *(np.clip(d, 0.1, k - 0.1) for k, d in enumerate((d1, d2, d3), 1))])


def _keys(context: np.ndarray, token: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.where(context == _UNSEEN, _UNSEEN, context * vocab_size + token)


def _find(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The index of each query in sorted `keys`, or _UNSEEN."""
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, index, _UNSEEN)

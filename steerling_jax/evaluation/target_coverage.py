"""Which of some target features the texts of a data set cover, and how soon texts of different origins cover them.

A target is covered where it fires in at least `least` texts.

Legend: N texts, J targets, S features of an autoencoder, n texts read so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_array

from steerling_jax.errors import require
from steerling_jax.evaluation.coverage import coverage_curve, random_orders
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.evaluation.sparse_tables import sample_counts, table_shape


class TargetCoverage(NamedTuple):
    """How a data set covers targets.

    samples: N. texts (J,) int64: in how many texts each target fires. largest (J,) float32: its largest latent, 0 where
    it never fires. missing (J,) int64: how many more texts each needs. fired, features: how many of all S features fire
    in any text, and S; the share is what a random feature would have.
    """

    samples: int
    texts: np.ndarray
    largest: np.ndarray
    missing: np.ndarray
    fired: int
    features: int

    @property
    def covered(self) -> np.ndarray:
        """(J,) bool."""
        return self.missing == 0


def target_coverage(strongest: csr_array, targets: Sequence[int], least: int = 1) -> TargetCoverage:
    """The coverage of `targets` by texts whose strongest latents are (N, S). Raises `UserError` without targets."""
    require(len(targets) > 0, "There are no target features; give some.", "targets")
    N, S = table_shape(strongest)
    counts = sample_counts(strongest)
    texts = counts[list(targets)]
    largest = strongest[:, list(targets)].toarray().max(axis=0)
    return TargetCoverage(N, texts, largest, np.maximum(0, least - texts), int((counts > 0).sum()), S)


class CoverageCurve(NamedTuple):
    """The number of targets that the first n texts cover, for n from 0 to `len(mean) - 1`; low and high are the 2.5 %
    and 97.5 % percentiles over random orders of the texts."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def covered_in_order(fires: np.ndarray) -> np.ndarray:
    """The number of targets (N + 1,) that fire in at least one of the first n texts, from fires (N, J) bool."""
    ever = np.logical_or.accumulate(fires, axis=0).sum(axis=1)
    return np.concatenate([[0], ever]).astype(np.int64)


def natural_coverage(fires: np.ndarray, size: int, key: jax.Array, draws: int = 500) -> CoverageCurve:
    """The curve of `size` texts that are drawn without replacement from a pool, fires (N, J) bool.

    The mean is exact (`coverage_curve`), the percentiles are of `draws` random orders.
    Raises `UserError` for a pool of fewer than `size` texts.
    """
    N, J = fires.shape
    require(size <= N, f"The pool has {N} texts, but {size} are to be drawn; give a larger one.", "pool")
    mean = coverage_curve(fires.sum(axis=0), N, np.arange(size + 1))
    if not J:
        return CoverageCurve(mean, mean, mean)
    orders = random_orders(N, key, draws)[:, :size]
    curves = np.array([covered_in_order(fires[order]) for order in orders])
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return CoverageCurve(mean, low, high)


def chance_of_coverage(fires: np.ndarray, size: int) -> np.ndarray:
    """The probability (J,) that `size` texts drawn without replacement from fires (N, J) have each target."""
    counts = fires.sum(axis=0)
    each = [coverage_curve(np.array([count]), len(fires), np.array([size]))[0] for count in counts]
    return np.array(each, np.float64)


def coverage_difference(ours: np.ndarray, others: np.ndarray, key: jax.Array) -> Estimate:
    """The share of targets that `ours` covers minus that of `others`, with a bootstrap interval over the targets.

    ours, others (J,): 1 or True where a target is covered, or the probability of it.
    """
    paired = np.asarray(ours, np.float64) - np.asarray(others, np.float64)
    return bootstrap(lambda drawn: float(paired[drawn].mean()), len(paired), key)

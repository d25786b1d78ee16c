"""The shape and the column counts of sparse tables with a row for each sample."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array


def table_shape(table: csr_array) -> tuple[int, int]:
    """(rows, columns), as integers; SciPy's annotations do not say that a table has two axes."""
    rows, columns = np.asarray(table.shape).tolist()
    return rows, columns


def sample_counts(has: csr_array) -> np.ndarray:
    """m (S,) int64, the number of samples with each feature, for has (N, S), where a feature that is absent is 0."""
    return np.bincount(has.indices[has.data != 0], minlength=table_shape(has)[1])

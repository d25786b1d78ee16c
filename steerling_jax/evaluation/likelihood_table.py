"""Log-likelihoods as they are returned: numbers that say what they are made of, and print as a table."""

from __future__ import annotations

import math
from typing import Any

from steerling_jax.decoding.tables import Table, Tabular, counted


class LogLikelihood(float):
    """A bound on a log-likelihood in nats: a number, with what it is made of.

    tokens: of the continuation. samples: maskings. standard_error: of the average over maskings, in nats; the numbers
    of masked tokens are spread evenly and not drawn independently, so the true error is smaller. NaN for one sample.
    An autoregressive model's value is exact: one sample, and the error 0.
    """

    tokens: int
    samples: int
    standard_error: float

    def __new__(cls, value: float, tokens: int, samples: int, standard_error: float) -> LogLikelihood:
        made = super().__new__(cls, value)
        made.tokens, made.samples, made.standard_error = tokens, samples, standard_error
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # for pickle
        return float(self), self.tokens, self.samples, self.standard_error

    def __repr__(self) -> str:
        return f"{float(self):.6g} nats ± {self.standard_error:.2g} ({self.tokens} tokens, {self.samples} samples)"

    def __str__(self) -> str:
        return str(float(self))

    def _repr_html_(self) -> str:
        return LogLikelihoods([self]).summary().html()

    def to_dataframe(self) -> Any:
        """One row, as a `pandas.DataFrame`. Raises `UserError` without pandas."""
        return LogLikelihoods([self]).to_dataframe()


class LogLikelihoods(Tabular, list[LogLikelihood]):
    """Log-likelihoods as a list, which prints as a table with a row for each."""

    def table(self) -> Table:
        """A row for each."""
        columns = {
            "nats": [float(one) for one in self],
            "tokens": [one.tokens for one in self],
            "nats_per_token": [one / one.tokens if one.tokens else math.nan for one in self],
            "standard_error": [one.standard_error for one in self],
            "samples": [one.samples for one in self],
        }
        return Table(f"{counted(len(self), 'log-likelihood bound')}", columns)

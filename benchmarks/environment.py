"""What every benchmark reports beside its figures: the date, the number of cores, the load before it, JAX's version."""

from __future__ import annotations

import datetime
import os

import jax


def environment() -> dict[str, object]:
    """The first fields of a benchmark's report. The load is the one-minute average: take figures on idle cores."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
    }

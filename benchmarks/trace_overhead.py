"""What recording the trace costs while decoding, on the random 40 M model of `decode.py` or another.

    python benchmarks/trace_overhead.py [--model steerling-pydocs]

Texts of 128 tokens after 128, written in turns: with the commits alone, with hidden rows (what attribution starts
from), and with hidden rows and the concept heads over them, 64 rows at a time: once a block on the 40 M model. Pairs of
neighbouring runs; the interval is of the mean overhead, 95 %, by bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from decode import write_model

import steerling_jax as sj
from steerling_jax.evaluation.intervals import bootstrap_mean


def ways(bundle: sj.Bundle) -> dict[str, Callable[[list[int], sj.GenerationConfig], object]]:
    def heads(prompt: list[int], config: sj.GenerationConfig) -> object:
        return sj.concept_contributions(bundle, sj.generate(bundle, prompt, config, record_hidden=True).trace)

    return {
        "commits alone": lambda prompt, config: sj.generate(bundle, prompt, config, record_hidden=False),
        "with hidden rows": lambda prompt, config: sj.generate(bundle, prompt, config, record_hidden=True),
        "with hidden rows and heads": heads,
    }


def seconds(bundle: sj.Bundle, rounds: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each way; the ways take turns, first in one order, then in the other."""
    random = np.random.default_rng(1)
    config = sj.GenerationConfig(max_new_tokens=128, seed=0)
    prompt = random.integers(0, bundle.config.vocab_size - 5, 128).tolist()
    each = ways(bundle)
    for way in each.values():
        way(prompt, config)  # compiles
    times: dict[str, list[float]] = {name: [] for name in each}
    for number in range(rounds):
        for name in list(each)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            each[name](prompt, config)
            times[name].append(time.perf_counter() - begin)
    return {name: np.asarray(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="MODEL", help="default: the random 40 M model")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            write_model(Path(folder))
        found = seconds(sj.load(args.model or folder), args.rounds)
    plain = found.pop("commits alone")
    report: dict = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
                    "jax": jax.__version__, "seconds": float(np.median(plain))}  # fmt: skip
    for name, values in found.items():
        report[name] = bootstrap_mean([values / plain - 1], jax.random.key(0))._asdict()  # pyright: ignore[reportOptionalMemberAccess]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

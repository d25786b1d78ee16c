"""The time that recording a trace adds to decoding, with the random 40 M model of `decode.py` or another one.

    python benchmarks/trace_overhead.py [--model steerling-pydocs]

Generates 128 tokens after a prompt of 128 in three variants: recording commits alone, also the hidden rows that
attribution starts from, and also the concept contributions of these rows. Figures are the mean relative overhead over
commits alone, from runs that take turns, with 95 % bootstrap intervals over rounds.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/decoding.md. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from decode import write_model
from environment import environment

import steerling_jax as sj
from steerling_jax.evaluation.intervals import bootstrap_mean


def variants(bundle: sj.Bundle) -> dict[str, Callable[[list[int], sj.GenerationConfig], object]]:
    """Functions that generate a text and record more and more of it."""

    def heads(prompt: list[int], config: sj.GenerationConfig) -> object:
        return sj.concept_contributions(bundle, sj.generate(bundle, prompt, config, record_hidden=True).trace)

    return {
        "commits alone": lambda prompt, config: sj.generate(bundle, prompt, config, record_hidden=False),
        "with hidden rows": lambda prompt, config: sj.generate(bundle, prompt, config, record_hidden=True),
        "with hidden rows and heads": heads,
    }


def seconds(bundle: sj.Bundle, rounds: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each variant; they take turns, with the order reversed in every other round."""
    random = np.random.default_rng(1)
    config = sj.GenerationConfig(max_new_tokens=128, seed=0)
    prompt = random.integers(0, bundle.config.vocab_size - 5, 128).tolist()
    functions = variants(bundle)
    for function in functions.values():
        function(prompt, config)  # compiles
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            functions[name](prompt, config)
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
        times = seconds(sj.load(args.model or folder), args.rounds)
    plain = times.pop("commits alone")
    report: dict = environment() | {"seconds": float(np.median(plain))}
    for name, values in times.items():
        report[name] = bootstrap_mean([values / plain - 1], jax.random.key(0))._asdict()  # pyright: ignore[reportOptionalMemberAccess]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

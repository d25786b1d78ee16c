"""What concept heads in every pass cost a strict bottleneck: decoding with and without them, and training steps.

    python benchmarks/heads.py --corpus STORE [--model steerling-pydocs] [--rounds 8] [--steps]

In a strict model the logits read the heads' output alone, so every decoding pass runs them. The same weights without
the heads, as a bare backbone, take as many passes for other tokens. The variants take turns, with the order reversed in
every other round; figures are of processor time, which other work on the machine changes less than seconds. Intervals
(95 %) are over rounds. With --steps also training steps of the bundled model's objectives, 2,048 tokens each.

Reference machine: two cores of an AMD EPYC; results in docs/results/decoding.md. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import environment

import steerling_jax as sj
from steerling_jax.attribution.faithfulness.continuations import heldout_openings
from steerling_jax.configs import pydocs_diffusion, strict_pydocs
from steerling_jax.evaluation.intervals import bootstrap_mean
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.training_step import init_state, update
from steerling_jax.train.data.pipeline import training_examples
from steerling_jax.train.run.run_config import RunConfig

NEW = 64  # tokens of a text
OPENING = 16  # tokens of a prompt
BARE, STRICT = "without heads", "with heads"
STEPS = 4  # steps of a training turn


def bare(bundle: sj.Bundle) -> sj.Bundle:
    """The model's backbone, whose logits read the hidden states."""
    heads = ("known_head", "unknown_head")
    params = {name: value for name, value in bundle.params.items() if name not in heads}
    config = dataclasses.replace(bundle.config, interpretable=False, concept=None)
    return dataclasses.replace(bundle, params=params, config=config)


def decoding(bundle: sj.Bundle, prompts: list[list[int]], rows: int) -> dict[str, Callable[[], int]]:
    """Functions that write a text for each of the first `rows` prompts, all in one batch, and return the tokens."""
    config = sj.GenerationConfig(max_new_tokens=NEW, temperature=0.0, use_entropy_sampling=False)

    def write(model: sj.Bundle) -> int:
        return sum(len(text.tokens) for text in sj.generate_many(model, prompts[:rows], config))

    return {BARE: partial(write, bare(bundle)), STRICT: partial(write, bundle)}


def training(run: RunConfig, store: CorpusStore) -> Callable[[], int]:
    """A function that takes `STEPS` steps of a run and returns their tokens."""
    key, step = jax.random.key(0), jax.jit(partial(update, recipe=run), donate_argnums=0)
    examples = training_examples(store, seq_len=run.data.seq_len, batch_size=run.data.batch_size, seed=0)
    state, batch = jax.jit(partial(init_state, run))(key), next(iter(examples))

    def steps() -> int:
        nonlocal state
        for _ in range(STEPS):
            state, _metrics = step(state, batch, key)
        jax.block_until_ready(state)
        return STEPS * run.tokens_per_step

    return steps


def in_turns(functions: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Tokens a processor second of each variant, and the relative time of the last over the first by round."""
    for function in functions.values():
        function()  # compiles
    times: dict[str, list[float]] = {name: [] for name in functions}
    tokens = dict.fromkeys(functions, 0)
    for number in range(rounds):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            begin = time.process_time()
            tokens[name] = functions[name]()
            times[name].append(time.process_time() - begin)
    first, *_, last = functions
    seconds = {name: np.asarray(values) / tokens[name] for name, values in times.items()}
    ratio = bootstrap_mean([seconds[last] / seconds[first]], jax.random.key(0))
    assert ratio is not None
    speeds = {name: round(1 / float(np.median(values)), 1) for name, values in seconds.items()}
    return {"tokens_per_processor_second": speeds, "time_with_over_without": ratio._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="STORE")
    parser.add_argument("--model", default="steerling-pydocs", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], metavar="N", help="texts of a batch")
    parser.add_argument("--steps", action="store_true", help="also measure training steps")
    args = parser.parse_args()
    store, bundle = CorpusStore(args.corpus), sj.load(args.model)
    prompts = heldout_openings(store, max(args.rows), OPENING, 0)
    report = environment()
    for rows in args.rows:
        report[f"decoding, {rows} at once"] = in_turns(decoding(bundle, prompts, rows), args.rounds)
    if args.steps:
        runs = {BARE: pydocs_diffusion.config(), STRICT: strict_pydocs.config()}
        report["training"] = in_turns({name: training(run, store) for name, run in runs.items()}, args.rounds)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

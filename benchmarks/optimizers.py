"""AdamW and Muon compared: the held-out likelihood bound of a small model after the same steps on the same text.

    python benchmarks/optimizers.py --corpus CORPUS [--steps 300] [--rates 2e-3,8e-3] [--seeds 2] [--width 64]

CORPUS is the bundled model's corpus store (vocabulary 4096). The model is that of the `pydocs` config with two layers
and a smaller width, trained without the clean copy. Prints, for each peak rate, optimizer and seed, the bound after the
last step in nats per token (lower is better) and the median milliseconds of a step.

Reference machine: two cores of an Intel Xeon; results in docs/results/training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from steerling_jax.configs import pydocs
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.evaluation.heldout_figures import likelihood
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.training_step import init_state, update
from steerling_jax.train.data.pipeline import training_examples
from steerling_jax.train.run.run_config import RunConfig

HELD_OUT = 8_192  # tokens


def small_run(width: int, steps: int) -> RunConfig:
    """The run of the `pydocs` config with a smaller model."""
    run = pydocs.config()
    assert run.model.concept is not None
    assert isinstance(run.objective, ObjectiveConfig)
    concept = dataclasses.replace(run.model.concept, concept_dim=width, factorize_rank=16)
    model = dataclasses.replace(run.model, n_layers=2, n_embd=width, intermediate_size=5 * width // 2, concept=concept)
    objective = dataclasses.replace(run.objective, noise=NoiseConfig(floor=0.2))
    return dataclasses.replace(run, model=model, steps=steps, objective=objective)


def measure(run: RunConfig, step: Any, seed: int, store: CorpusStore, held: HeldOut) -> tuple[float, float]:
    """The bound in nats per token after the run, and the median seconds of a step."""
    data, key = run.data, jax.random.key(seed)
    batches = iter(training_examples(store, seq_len=data.seq_len, batch_size=data.batch_size, seed=seed))
    state, times = jax.jit(partial(init_state, run))(key), []
    for _ in range(run.steps):
        batch = next(batches)
        start = time.perf_counter()
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    figures = likelihood(state.params, held, run.model, run.compute)
    return float(figures["nats_per_token"]), float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", default="2e-3,8e-3")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    store, run = CorpusStore(args.corpus), small_run(args.width, args.steps)
    held = read_heldout(store, run.data.seq_len, most_tokens=HELD_OUT)
    print(f"{'kind':6} {'rate':>8} {'seed':>4} {'nats a token':>12} {'ms a step':>9}", flush=True)
    for rate in map(float, args.rates.split(",")):
        for kind in ("adamw", "muon"):
            optimizer = OptimizerConfig(kind=kind, peak_rate=rate, warmup_steps=args.steps // 10, b2=0.99)  # type: ignore[arg-type]
            one = dataclasses.replace(run, optimizer=optimizer)
            step = jax.jit(partial(update, recipe=one), donate_argnums=0)  # one program for all seeds
            for seed in range(args.seeds):
                nats, seconds = measure(one, step, seed, store, held)
                print(f"{kind:6} {rate:8.1e} {seed:4} {nats:12.3f} {1e3 * seconds:9.0f}", flush=True)


if __name__ == "__main__":
    main()

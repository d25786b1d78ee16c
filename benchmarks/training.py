"""Training speed of a config in tokens per second, beside the same model and loss in plain PyTorch.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/training.py --reference-python PATH/TO/python-with-torch

Times whole steps (noise, forward, backward, optimizer) on random tokens; compilation is not counted. Variants take
turns, so that they meet the same machine. Ratios are medians over the turns with 95 % bootstrap intervals: the cost of
the concept module, and the speed relative to PyTorch (above 1: this package is faster) in float32 and in bfloat16. Also
reported are the share of this machine's matmul rate that a step reaches, with FLOPs by the model's own count
(`steerling_jax/models/steerling/flops.py`), and, before any timing, how closely both sides' losses and gradients agree.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/training.md. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from training_pair import Reference, check_agreement, export

from steerling_jax.evaluation.intervals import bootstrap
from steerling_jax.models.steerling.flops import Flops, training_flops
from steerling_jax.objectives.noise import expected_masked_share
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import init_state, train_step

Timer = Callable[[], float]  # seconds of one step


def random_batch(run: RunConfig) -> dict[str, jax.Array]:
    """A batch of random tokens, in 16 chunks per sequence with 0 to 16 labels each."""
    random = np.random.default_rng(0)
    B, T, S = run.data.batch_size, run.data.seq_len, 16
    concepts = run.model.concept.n_concepts if run.model.concept else 1
    labels = np.sort(random.random((B, S, concepts)).argsort(axis=-1)[..., :16], axis=-1)
    used = np.arange(labels.shape[-1]) < random.integers(0, 17, (B, S, 1))
    arrays = {
        "tokens": random.integers(0, run.model.vocab_size - 5, (B, T)),
        "chunk_index": np.tile(np.arange(T) * S // T, (B, 1)),
        "chunk_labels": np.where(used, labels, -1),
    }
    return {name: jnp.asarray(value, jnp.int32) for name, value in arrays.items()}


def stepper(run: RunConfig) -> Timer:
    """A timer of one training step; the step is compiled before this returns."""
    step = jax.jit(lambda state, batch: train_step(state, batch, run=run), donate_argnums=0)
    state, batch = init_state(run), random_batch(run)
    state, _ = jax.block_until_ready(step(state, batch))

    def once() -> float:
        nonlocal state
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        return time.perf_counter() - begin

    return once


def matmul_rate(operands: str) -> float:
    """FLOP/s of a product (4096, 1024) by (1024, 1024) with these operands, accumulated in float32."""
    a, b = jnp.ones((4096, 1024), operands), jnp.ones((1024, 1024), operands)
    product = jax.jit(
        lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    )
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * a.shape[0] * a.shape[1] * b.shape[0] / statistics.median(seconds)


def step_flops(run: RunConfig) -> Flops:
    """FLOPs of one training step."""
    noise = run.objective.noise
    return training_flops(
        run.model,
        batch_size=run.data.batch_size,
        seq_len=run.data.seq_len,
        clean_context=noise.clean_context,
        masked_share=expected_masked_share(noise),
    )


def in_turns(timers: dict[str, Timer], rounds: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each timer; they take turns."""
    turns = [{name: timer() for name, timer in timers.items()} for _ in range(rounds)]
    return {name: np.array([turn[name] for turn in turns]) for name in timers}


def ratio(above: np.ndarray, below: np.ndarray) -> list[float]:
    """The median over turns of above / below, and its 95 % interval."""
    quotients = above / below
    estimate = bootstrap(lambda rows: float(np.median(quotients[rows])), len(quotients), jax.random.key(0))
    return [estimate.mean, estimate.low, estimate.high]


def measure(run: RunConfig, reference: Reference | None, rounds: int) -> dict[str, Any]:
    """The report's figures: the config, the model without concepts, in float32, and PyTorch if there is a reference."""
    bare = dataclasses.replace(run, model=dataclasses.replace(run.model, interpretable=False, concept=None))
    wide = dataclasses.replace(run, compute=dataclasses.replace(run.compute, dtype="float32", matmul_dtype=None))
    timers = {"ours": stepper(run), "without_concepts": stepper(bare), "float32": stepper(wide)}
    if reference is not None:
        timers |= {f"torch_{name}": reference.timer(name) for name in ("float32", "bfloat16")}
        for timer in timers.values():
            timer()  # warms up PyTorch
    seconds = in_turns(timers, rounds)
    flops, operands = step_flops(run), run.compute.operands
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    rate = flops.total / float(np.median(seconds["ours"]))
    figures: dict[str, Any] = {
        "operands": operands,
        "tokens_per_second": {name: run.tokens_per_step / float(np.median(s)) for name, s in seconds.items()},
        "seconds": {name: np.round(s, 4).tolist() for name, s in seconds.items()},
        "concepts_cost": ratio(seconds["ours"], seconds["without_concepts"]),
        "concepts_cost_by_flops": flops.total / (flops.total - flops.concepts),
        "gflops_per_second": rate / 1e9,
        "matmul_gflops_per_second": {name: rate / 1e9 for name, rate in rates.items()},
        "share_of_float32_rate": rate / rates["float32"],
        "share_of_operand_rate": rate / rates[operands],
    }
    if reference is not None:
        figures["torch"] = reference.about
        figures["times_as_fast_as_torch_float32"] = ratio(seconds["torch_float32"], seconds["float32"])
        figures["times_as_fast_as_torch_bfloat16"] = ratio(seconds["torch_bfloat16"], seconds["ours"])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pydocs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--reference-python", metavar="PATH", help="a Python with torch")
    args = parser.parse_args()
    run = load_config(args.config)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
        "jax": jax.__version__, "config": run.name,
    }  # fmt: skip
    if args.reference_python is None:
        result |= measure(run, None, args.rounds)
    else:
        batch = random_batch(run)
        with tempfile.TemporaryDirectory() as folder:
            export(run, batch, Path(folder))
            with Reference(args.reference_python, Path(folder)) as reference:
                result["agreement"] = check_agreement(run, batch, reference)
                result |= measure(run, reference, args.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

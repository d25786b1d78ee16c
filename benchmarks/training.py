"""Training speed: tokens/s of a config, its share of this machine's matmul rate, and what the concept losses cost.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/training.py [--config pydocs]

Whole steps (forward, backward, optimiser) on random tokens, compiling not counted; with and without the concept module
in turn. FLOPs are those of the products with weights, forward and backward: 6 a parameter and row, where a clean copy
counts as rows; attention is left out. The matmul rate is that of a large product of the same operand type. Run it on
idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.train.run_config import RunConfig, load_config
from steerling_jax.train.step import init_state, train_step


def random_batch(run: RunConfig) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    B, T, S = run.data.batch_size, run.data.seq_len, 16
    concepts = run.model.concept.n_concepts if run.model.concept else 1
    arrays = {
        "tokens": random.integers(0, run.model.vocab_size - 5, (B, T)),
        "chunk_index": np.tile(np.arange(T) * S // T, (B, 1)),
        "chunk_labels": random.integers(-1, concepts, (B, S, 16)),
    }
    return {name: jnp.asarray(value, jnp.int32) for name, value in arrays.items()}


def stepper(run: RunConfig):
    """A function that times one step, after one that compiles."""
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
    """FLOP/s of (4096, 1024) by (1024, 1024), accumulated in float32."""
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


def flops(run: RunConfig) -> float:
    """FLOPs of one step's products with the backbone's weights; the output projection for the kept rows only."""
    c, o = run.model, run.objective
    mlp = (3 if c.mlp_type == "swiglu" else 2) * c.n_embd * c.mlp_width
    layer = 2 * c.n_embd * (c.n_embd + c.kv_heads * c.head_dim) + mlp
    rows = run.data.batch_size * run.data.seq_len
    copies = 2 if o.noise.clean_context else 1
    return 6.0 * (rows * copies * c.n_layers * layer + rows * min(o.rows, 1.0) * c.vocab_size * c.n_embd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pydocs")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    run = load_config(args.config)
    bare = dataclasses.replace(run, model=dataclasses.replace(run.model, interpretable=False, concept=None))
    whole, plain = stepper(run), stepper(bare)
    pairs = [(whole(), plain()) for _ in range(args.rounds)]  # in turn, so that both meet the same machine
    seconds, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    result = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "tokens_per_second": run.data.batch_size * run.data.seq_len / seconds,
        "step_seconds": seconds,
        "step_seconds_without_concepts": without,
        "concepts_cost": seconds / without,
        "gflops_per_second": flops(run) / seconds / 1e9,
        "matmul_gflops_per_second": {name: rate / 1e9 for name, rate in rates.items()},
        "share_of_float32_rate": flops(run) / seconds / rates["float32"],
        "share_of_operand_rate": flops(run) / seconds / rates[run.compute.operands],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Time and completeness error of input attribution, beside the published PyTorch package on the same trace.

    python benchmarks/input_attribution.py --reference-python PATH/TO/python

The trace is one greedy generation of 128 tokens after a prompt of 128, by the model of `decode.py` (40 M random
weights); the targets are 16 of its commits, evenly spaced. The published attributor uses 32 right-Riemann nodes, each a
pass over the whole canvas, for one target at a time. This package uses the fewest Gauss–Legendre nodes (of 4, 6, 8, …)
whose mean |completeness error| is not larger, so the ratio compares times at the same accuracy. Both errors are against
this package's difference path − baseline.

Also reported: the time of a gradient pass as a multiple of its bare matrix products (forward and backward), the default
tolerance's passes and error, and the peak memory of a process with 8, 32 and 128 nodes. Compilation is not counted.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/attribution.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decode import CONFIG, our_side, published_side, write_model
from environment import environment

import steerling_jax as sj
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.record import InputAttribution

PROMPT, NEW, ROWS = 128, 128, 8
NODES = (4, 6, 8, 10, 12, 16, 24, 32)


def bare_gradient_pass(rows: int, length: int) -> Callable[[], float]:
    """A timer of the matrix products of one forward pass and of its gradient with respect to the inputs."""
    D, F, G, d, H = CONFIG.n_embd, CONFIG.mlp_width, CONFIG.kv_heads, CONFIG.head_dim, CONFIG.n_head
    keys = iter(jax.random.split(jax.random.key(0), 4 * CONFIG.n_layers + 1))
    shapes = ((D + 2 * G * d, D), (D, D), (2 * F, D), (D, F))
    layers = [[0.02 * jax.random.normal(next(keys), shape) for shape in shapes] for _ in range(CONFIG.n_layers)]
    x = jax.random.normal(next(keys), (rows * length, D))

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())))

    def run(x: jax.Array) -> jax.Array:
        for attn, proj, fc, out in layers:
            q, k, v = jnp.split(product(x, attn), [D, D + G * d], axis=-1)
            q, k, v = q.reshape(rows, -1, G, H // G, d), k.reshape(rows, -1, G, d), v.reshape(rows, -1, G, d)
            mixed = jnp.einsum("bghts,bsgd->btghd", jnp.einsum("btghd,bsgd->bghts", q, k), v)
            x = x + product(mixed.reshape(-1, D), proj)
            inner = product(x, fc)
            x = x + product(inner[:, :F] * inner[:, F:], out)
        return x.sum()

    gradient = jax.jit(jax.grad(run))
    jax.block_until_ready(gradient(x))

    def once() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(gradient(x))
        return time.perf_counter() - begin

    return once


class Run(NamedTuple):
    """Wall-clock and processor seconds of an attribution, and its result."""

    seconds: float
    cpu_seconds: float
    result: InputAttribution


def timed(bundle: sj.Bundle, trace: Trace, targets: int, nodes: int | None) -> Run:
    begin, cpu = time.perf_counter(), time.process_time()
    result = attribute_inputs(bundle, trace, nodes=nodes, sample=targets, batch_size=ROWS)
    return Run(time.perf_counter() - begin, time.process_time() - cpu, result)


def mean_error(result: InputAttribution) -> float:
    return float(np.abs(result.completeness_error).mean())


def published_request(trace: Trace, result: InputAttribution) -> dict:
    """The request to `published_worker.py` for the same targets."""
    return {
        "prompt": trace.prompt.tolist(), "max_new_tokens": NEW, "nodes": 32, "explain": result.target_orders.tolist(),
        "commits": [[position, token, logit] for _, position, token, logit in trace.flat()],
    }  # fmt: skip


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """The report's figures, without memory."""
    write_model(folder)
    prompt = np.random.default_rng(1).integers(0, CONFIG.eos_token_id, PROMPT).tolist()
    _, trace = our_side(folder, NEW)(prompt)
    bundle = sj.load(folder)
    first, _, result = timed(bundle, trace, args.targets, nodes=1)
    report: dict = {"targets": args.targets, "first_call_seconds": first, "errors": {}, "rounds": []}
    with published_side(args.reference_python, folder) as published:
        published_error, answer, request = None, {}, published_request(trace, result)
        if published is not None:
            answer = published(request)
            difference = result.path_logits - result.baseline_logits
            published_error = float(np.abs(np.asarray(answer["sums"]) - difference).mean())
            report["published_error"] = published_error
        for nodes in NODES if published_error is not None else (8,):
            report["nodes"], result = nodes, timed(bundle, trace, args.targets, nodes).result
            report["errors"][nodes] = mean_error(result)
            if published_error is not None and report["errors"][nodes] <= published_error:
                break
        report["mean_difference"] = float(np.abs(result.path_logits - result.baseline_logits).mean())
        bare = bare_gradient_pass(ROWS, PROMPT + NEW)
        for number in range(args.rounds):  # in turn, so that both meet the same machine
            run = timed(bundle, trace, args.targets, report["nodes"])
            one = {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds}
            one["over_bare"] = last_block_pass(bundle, trace) / statistics.median(bare() for _ in range(3))
            if published is not None:
                answer = published(request) if number else answer
                for clock in ("seconds", "cpu_seconds"):
                    one[f"published_{clock}"] = answer[clock]
                    one[f"{clock}_ratio"] = answer[clock] / one[clock]
            report["rounds"].append(one)
    default = timed(bundle, trace, args.targets, nodes=None)
    report["default"] = {
        "seconds": default.seconds, "passes": default.result.nodes.tolist(), "error": mean_error(default.result),
        "converged": int(default.result.converged.sum()),
    }  # fmt: skip
    return report


def last_block_pass(bundle: sj.Bundle, trace: Trace) -> float:
    """Seconds of one gradient pass of `ROWS` rows over the whole canvas.

    The difference of two runs that differ by 4 passes, so that the fixed cost of a call cancels.
    """
    position = [int(len(trace.tokens) - 1)]

    def seconds(nodes: int) -> float:
        begin = time.perf_counter()
        attribute_inputs(bundle, trace, positions=position, nodes=nodes, batch_size=ROWS)
        return time.perf_counter() - begin

    return (seconds(5 * ROWS) - seconds(ROWS)) / 4


def peak_memory(folder: Path, nodes: int) -> int:
    """Peak resident memory, in MB, of a new process that explains one target with this number of nodes."""
    command = [sys.executable, __file__, "--memory", str(nodes), "--folder", str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def report_memory(folder: Path, nodes: int) -> None:
    """Prints the peak memory of this process; runs in the process that `peak_memory` starts."""
    import resource

    tokens = np.arange(PROMPT + NEW, dtype=np.int32)
    trace = Trace(tokens[:PROMPT], tokens, (Commit(0, (len(tokens) - 1,), (5,), (0.0,)),), CONFIG.mask_token_id)
    attribute_inputs(sj.load(folder), trace, nodes=nodes, batch_size=ROWS)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def show(report: dict) -> None:
    """Prints the report as text."""
    print(f"{report['date']}, {report['cores']} cores, load {report['load']:.1f} before, jax {report['jax']}")
    print(f"first call {report['first_call_seconds']:.0f} s; mean |path − baseline| {report['mean_difference']:.3f}")
    for nodes, error in report["errors"].items():
        print(f"ours, {nodes} Gauss–Legendre nodes: mean |completeness error| {error:.3f}")
    if "published_error" in report:
        print(f"published, 32 right-Riemann nodes: {report['published_error']:.3f}")
    for one in report["rounds"]:
        line = f"{report['targets']} targets with {report['nodes']} nodes: {one['seconds']:.1f} s"
        if "seconds_ratio" in one:
            line += f", published {one['published_seconds']:.1f} s, ratio {one['seconds_ratio']:.2f}"
            line += f" (CPU time {one['cpu_seconds_ratio']:.2f})"
        print(line + f"; a pass over its bare products {one['over_bare']:.2f}")
    default = report["default"]
    print(
        f"default tolerance: {default['seconds']:.1f} s, {default['converged']} of {report['targets']} converged, "
        f"mean error {default['error']:.4f}, passes {default['passes']}"
    )
    print("peak memory: " + ", ".join(f"{nodes} nodes {size} MB" for nodes, size in report["memory_MB"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", metavar="PATH", help="a Python with steerling 0.2.0 and torch")
    parser.add_argument("--targets", type=int, default=16, help="commits to explain (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="timings of each side (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", type=int, metavar="NODES", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        report_memory(args.folder, args.memory)
        return
    report: dict = environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        report |= measure(args, folder)
        report["memory_MB"] = {nodes: peak_memory(folder, nodes) for nodes in (8, 32, 128)}
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()

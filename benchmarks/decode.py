"""Decoding speed in tokens per second, beside the published PyTorch package with the same weights and prompts.

    python benchmarks/decode.py --reference-python PATH/TO/python

The model has 40 M random weights (8 layers, D 512, 8 heads over 2, block 64, V 8192, 4,096 known and 12,288 discovered
concepts of rank 64). Decoding is greedy: 128 new tokens, float32, one row. The Python at PATH needs `steerling` 0.2.0
and torch (see docs/results/decoding.md); without the option only this package is timed.

For each prompt length: tokens per second of both sides and their ratio, whether the tokens are equal, and the time as a
multiple of the bare matrix products of the same passes (`bare_matmuls.py`), which is 1 if nothing but products took
time. Both sides take turns in one run, so that they meet the same machine. Compilation is reported separately.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/decoding.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from bare_matmuls import bare_pass
from environment import environment

import steerling_jax as sj
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import compiled_forward, param_shapes

CONFIG = ModelConfig(
    n_layers=8,
    n_head=8,
    n_embd=512,
    n_kv_heads=2,
    block_size=4096,
    vocab_size=8192,
    eos_token_id=8187,
    pad_token_id=8188,
    bos_token_id=8189,
    endofchunk_token_id=8190,
    mask_token_id=8191,
    concept=ConceptConfig(n_concepts=4096, n_unknown_concepts=12_288, concept_dim=512, factorize_rank=64),
)


def write_model(folder: Path) -> None:
    """Writes the model in the published layout: weights normal(0, 0.02) from a fixed seed, norm weights 1."""
    random = np.random.default_rng(0)

    def leaf(path, shape):
        is_norm = any(k.key.startswith("ln_") or k.key.endswith("_norm") for k in path)
        return np.ones(shape.shape, np.float32) if is_norm else (random.normal(0, 0.02, shape.shape)).astype(np.float32)

    write_published(folder, CONFIG, jax.tree_util.tree_map_with_path(leaf, param_shapes(CONFIG)))


def our_side(folder: Path, new: int) -> Callable[[list[int]], tuple[float, Trace]]:
    """A function from a prompt to the seconds and the trace of one generation of `new` tokens."""
    params = unstack_layers(sj.load(folder).params)
    settings = GenerationConfig(max_new_tokens=new, temperature=0.0, use_entropy_sampling=False, repetition_penalty=1.0)

    def run(prompt: list[int]) -> tuple[float, Trace]:
        begin = time.perf_counter()
        decoder = Decoder(params, config=CONFIG, compute=sj.Compute(), rows=1)
        decoder.submit(Request(np.array(prompt), settings, seed=0, record_hidden=True))
        events = []
        while decoder.busy:
            events = decoder.advance()
        _, trace = events[-1]
        assert isinstance(trace, Trace)
        return time.perf_counter() - begin, trace

    return run


@contextlib.contextmanager
def published_side(python: str | None, folder: Path) -> Iterator[Callable[[dict], dict] | None]:
    """A function that sends a request to the published package in a process of its own and returns the answer.

    None without a Python that has the package.
    """
    if python is None:
        yield None
        return
    worker = Path(__file__).with_name("published_worker.py")
    process = subprocess.Popen(
        [python, str(worker), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            sys.exit(f"{python} cannot run the published package; its message is above.")

        def send(request: dict, to: IO[str] = process.stdin, back: IO[str] = process.stdout) -> dict:
            print(json.dumps(request), file=to, flush=True)
            return json.loads(back.readline())

        send({"prompt": [1], "max_new_tokens": 64, "steps": 2})  # warm up
        yield send
    finally:
        process.stdin.close()
        process.wait()


def first_difference(params, trace: Trace, published: list[int]) -> str:
    """Where tokens differ: the gap of our top two logits at the earliest commit that does."""
    for step, position, token, _ in trace.flat():
        if published[position] != token:
            canvas = jnp.asarray(trace.snapshot(step))[None]
            logits = compiled_forward(params, canvas, config=CONFIG, compute=sj.Compute()).logits[0, position]
            top = np.sort(np.asarray(logits))[-2:]
            return f"step {step}, position {position}: top two logits {top[1] - top[0]:.1e} apart"
    return "equal"


def double_passes(trace: Trace) -> int:
    """Number of passes over two diffusion blocks: the first pass of each sampler block, and, where a sampler block
    straddles two diffusion blocks, every pass after a commit in the first of them."""
    W, P = CONFIG.diff_block_size, trace.prompt_length
    count = 0
    for _, group in itertools.groupby(trace.flat(), key=lambda item: (item[1] - P) // W):
        block = [position for _, position, *_ in group]
        a_ends = ((min(block) - 1) // W + 1) * W
        count += 1 + sum(position < a_ends for position in block[:-1])
    return count


def bare_seconds(length: int, trace: Trace) -> tuple[Callable[[], float], Callable[[], float], int]:
    """Timers of the bare products of a pass over one and over two blocks, and the number of passes over two."""
    cached = length + (len(trace.tokens) - length) // 2 - CONFIG.diff_block_size  # in the middle of the generation
    mean_rows = 44  # rows of logits per pass: the mean of 64, 32 and 16 over the 64 steps of a block
    one, two = (
        bare_pass(CONFIG, rows=1, blocks=blocks, cached=max(cached, 1), logit_rows=mean_rows) for blocks in (1, 2)
    )
    return one, two, double_passes(trace)


def measure(args: argparse.Namespace, folder: Path) -> list[dict]:
    """A row of the report for each prompt length."""
    write_model(folder)
    ours, rows = our_side(folder, args.new), []
    random = np.random.default_rng(1)
    with published_side(args.reference_python, folder) as published:
        for length in args.prompts:
            prompt = random.integers(0, CONFIG.eos_token_id, length).tolist()
            compile_seconds, first = ours(prompt)
            one, two, doubles = bare_seconds(length, first)
            our_seconds: list[float] = []
            bare: list[float] = []
            published_seconds: list[float] = []
            row: dict = {"prompt": length, "compile_seconds": compile_seconds}
            for _ in range(args.rounds):  # in turn, so that all meet the same machine
                seconds, trace = ours(prompt)
                our_seconds.append(seconds)
                times = [statistics.median(timer() for _ in range(9)) for timer in (one, two)]
                bare.append(times[0] * (trace.passes - doubles) + times[1] * doubles)
                if published is not None:
                    answer = published({"prompt": prompt, "max_new_tokens": args.new})
                    published_seconds.append(answer["seconds"])
                    same = trace.tokens.tolist() == answer["tokens"]
                    params = None if same else sj.load(folder).params
                    row["tokens"] = "equal" if same else first_difference(params, trace, answer["tokens"])
            row["tokens_per_second"] = args.new / statistics.median(our_seconds)
            row["all_seconds"] = our_seconds
            row["passes"], row["double_passes"] = first.passes, doubles
            row["over_bare"] = statistics.median(our_seconds) / statistics.median(bare)
            if published_seconds:
                row["published_tokens_per_second"] = args.new / statistics.median(published_seconds)
                row["ratio"] = row["tokens_per_second"] / row["published_tokens_per_second"]
                row["published_all_seconds"] = published_seconds
            rows.append(row)
            print(f"prompt {length} done", file=sys.stderr)
    return rows


def show(report: dict) -> None:
    """Prints the report as a Markdown table."""
    print(f"{report['date']}, {report['cores']} cores, load {report['load']:.1f} before, jax {report['jax']}")
    print("| prompt | tokens/s | time over bare products | published | ratio | tokens | compiling, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in report["rows"]:
        published, ratio = row.get("published_tokens_per_second"), row.get("ratio")
        cells = [row["prompt"], f"{row['tokens_per_second']:.1f}", f"{row['over_bare']:.2f}"]
        cells += [f"{published:.2f}" if published else "–"]
        cells += [f"{ratio:.1f}" if ratio else "–", row.get("tokens", "–"), f"{row['compile_seconds']:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", metavar="PATH", help="a Python with steerling 0.2.0 and torch")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 100, 512, 500, 1536], metavar="N")
    parser.add_argument("--new", type=int, default=128, metavar="N", help="new tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="timings of each side (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report: dict = environment() | {"new_tokens": args.new}
    with tempfile.TemporaryDirectory() as folder:
        report["rows"] = measure(args, Path(folder) / "model")
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()

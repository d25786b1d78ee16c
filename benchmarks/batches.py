"""Decoding throughput of batches, and the work that exact optimisations and drafts save.

    python benchmarks/batches.py [--model steerling-pydocs]

With the random 40 M model of `decode.py` and batches of 1, 4 and 16 rows: tokens per second of all rows together, and
the fraction of the machine's float32 matmul rate (2048³, measured in the same run) that the matrix products reach.
Then, counted in passes and blocks and so independent of the machine: what two-block windows, storing a block with the
next block's first pass, and the prefix cache save, and with the bundled model (--model) the passes with drafts.

Reference machine: two idle cores of an Intel Xeon; results in docs/results/decoding.md. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bare_matmuls import flops, matmul_rate
from decode import double_passes, write_model
from environment import environment

import steerling_jax as sj
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.trace import Trace

GREEDY = sj.GenerationConfig(max_new_tokens=128, temperature=0.0, use_entropy_sampling=False, repetition_penalty=1.0)


def prompts(bundle, count: int, length: int) -> list[np.ndarray]:
    """`count` random prompts of `length` token ids."""
    random = np.random.default_rng(1)
    return [random.integers(0, bundle.config.vocab_size - 5, length) for _ in range(count)]


def decode_all(decoder: Decoder, requests: list[Request]) -> tuple[float, list[Trace]]:
    """Decodes all requests; returns the seconds and the traces in order of completion."""
    begin = time.perf_counter()
    for request in requests:
        decoder.submit(request)
    traces = []
    while decoder.busy:
        traces += [event for _, event in decoder.advance() if isinstance(event, Trace)]
    return time.perf_counter() - begin, traces


def throughput(bundle, rows: int, rounds: int) -> dict:
    """Tokens per second with `rows` requests in one batch, and the share of the matmul rate; medians of `rounds`."""
    requests = [Request(prompt, GREEDY, 0) for prompt in prompts(bundle, rows, 128)]

    def decoder() -> Decoder:
        return Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=rows)

    decode_all(decoder(), requests)  # compiles
    rates = [matmul_rate() for _ in range(rounds)]
    results = [decode_all(decoder(), requests) for _ in range(rounds)]
    times, traces = [seconds for seconds, _ in results], results[0][1]
    work = sum(
        flops(bundle.config, rows=rows, blocks=blocks, cached=192, logit_rows=44) * count
        for blocks, count in ((2, double_passes(traces[0])), (1, traces[0].passes - double_passes(traces[0])))
    )
    rate = statistics.median(rates)
    seconds = statistics.median(times)
    return {"rows": rows, "tokens_per_second": rows * 128 / seconds, "share_of_matmul_rate": work / seconds / rate}


def drafting(bundle, settings: sj.GenerationConfig, prompt: np.ndarray) -> list[dict]:
    """Passes for the same text with 1, 2, 4 and 8 drafts. Drafts are lossless, so the text must not change."""
    results = []
    for drafts in (1, 2, 4, 8):
        decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1)
        _, (trace,) = decode_all(decoder, [Request(prompt, settings, 0, drafts=drafts)])
        results.append(
            {
                "drafts": drafts,
                "passes": trace.passes,
                "tokens": sum(1 for _ in trace.flat()),
                "text": trace.tokens.tolist(),
            }
        )
    assert all(row["text"] == results[0]["text"] for row in results), "drafts changed the text"
    return [{name: value for name, value in row.items() if name != "text"} for row in results]


def savings(bundle) -> list[dict]:
    """Passes over two blocks and passes in all, beside those that decoding without the optimisations would take."""
    results = []
    for length in (128, 100):
        decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1)
        _, (trace,) = decode_all(decoder, [Request(prompts(bundle, 1, length)[0], GREEDY, 0)])
        double = double_passes(trace)
        results.append(
            {
                "prompt": length,
                "passes": trace.passes,
                "two_blocks": double,
                "two_blocks_always": trace.passes,
                "passes_if_stored_apart": trace.passes + 128 // bundle.config.diff_block_size,
            }
        )
    return results


def prefixes(bundle) -> dict:
    """Prefix cache hits, in blocks, of eight requests that share their first 512 tokens."""
    shared = prompts(bundle, 1, 512)[0]
    requests = [Request(np.concatenate([shared, tail]), GREEDY, 0) for tail in prompts(bundle, 8, 64)]
    decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1, prefix_cache_bytes=2**28)
    decode_all(decoder, requests)
    return {
        "requests": len(requests),
        "shared_blocks": len(requests) * (512 // bundle.config.diff_block_size),
        "blocks_found": decoder.prefixes.hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--model", default="steerling-pydocs", help="a trained model for drafting (default: bundled)")
    args = parser.parse_args()
    report: dict = environment()

    def add(name: str, result: object) -> None:
        report[name] = result
        print(f"{name}: {json.dumps(result)}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        bundle = sj.load(folder)
        for rows in args.rows:
            add(f"rows_{rows}", throughput(bundle, rows, args.rounds))
        add("savings", savings(bundle))
        add("prefixes", prefixes(bundle))
    trained = sj.load(args.model)
    prompt = np.asarray(trained.tokenizer.encode("Return a list of the files in a directory, and "))
    for name, settings in (("greedy", GREEDY), ("sampled", sj.GenerationConfig(max_new_tokens=128))):
        add(f"drafts_{name}", drafting(trained, settings, prompt))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

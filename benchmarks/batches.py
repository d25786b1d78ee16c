"""Many rows at once, and what each exact saving and drafting spare, on the random 40 M model of `decode.py`.

    python benchmarks/batches.py [--model steerling-pydocs]

Rows 1, 4, 16: tokens a second of all rows together, and the share of the machine's float32 matmul rate (2048³, same
run) that the products of the passes reach. Then, counted in passes and blocks, not in seconds: what two-block windows,
storing with the next block's first pass, masked-rows-only logits, the prefix cache, and drafts spare.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from bare_matmuls import flops, matmul_rate
from decode import double_passes, write_model

import steerling_jax as sj
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.trace import Trace

GREEDY = sj.GenerationConfig(max_new_tokens=128, temperature=0.0, use_entropy_sampling=False, repetition_penalty=1.0)


def prompts(bundle, count: int, length: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, bundle.config.vocab_size - 5, length) for _ in range(count)]


def decode_all(decoder: Decoder, requests: list[Request]) -> tuple[float, list[Trace]]:
    """Seconds, and the traces in order of completion."""
    begin = time.perf_counter()
    for request in requests:
        decoder.submit(request)
    traces = []
    while decoder.busy:
        traces += [event for _, event in decoder.advance() if isinstance(event, Trace)]
    return time.perf_counter() - begin, traces


def throughput(bundle, rows: int, rounds: int) -> dict:
    requests = [Request(prompt, GREEDY, 0) for prompt in prompts(bundle, rows, 128)]

    def decoder() -> Decoder:
        return Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=rows)

    decode_all(decoder(), requests)  # compiles
    rates = [matmul_rate() for _ in range(rounds)]
    rounds_done = [decode_all(decoder(), requests) for _ in range(rounds)]
    times, traces = [seconds for seconds, _ in rounds_done], rounds_done[0][1]
    work = sum(
        flops(bundle.config, rows=rows, blocks=blocks, cached=192, logit_rows=44) * count
        for blocks, count in ((2, double_passes(traces[0])), (1, traces[0].passes - double_passes(traces[0])))
    )
    rate = statistics.median(rates)
    seconds = statistics.median(times)
    return {"rows": rows, "tokens_per_second": rows * 128 / seconds, "share_of_matmul_rate": work / seconds / rate}


def drafting(bundle, settings: sj.GenerationConfig, prompt: np.ndarray) -> list[dict]:
    """Passes for the same text with 1, 2, 4, 8 canvases a pass."""
    found = []
    for drafts in (1, 2, 4, 8):
        decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1)
        _, (trace,) = decode_all(decoder, [Request(prompt, settings, 0, drafts=drafts)])
        found.append(
            {
                "drafts": drafts,
                "passes": trace.passes,
                "tokens": sum(1 for _ in trace.flat()),
                "text": trace.tokens.tolist(),
            }
        )
    assert all(row["text"] == found[0]["text"] for row in found), "drafts changed the text"
    return [{name: value for name, value in row.items() if name != "text"} for row in found]


def savings(bundle) -> list[dict]:
    """Attention blocks computed, of those that would be without a saving."""
    found = []
    for length in (128, 100):
        decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1)
        _, (trace,) = decode_all(decoder, [Request(prompts(bundle, 1, length)[0], GREEDY, 0)])
        double = double_passes(trace)
        found.append(
            {
                "prompt": length,
                "passes": trace.passes,
                "two_blocks": double,
                "two_blocks_always": trace.passes,
                "passes_if_stored_apart": trace.passes + 128 // bundle.config.diff_block_size,
            }
        )
    return found


def prefixes(bundle) -> dict:
    """Eight requests that share a beginning of 512 tokens: how many of its attention blocks were found, in all."""
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
    report: dict = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
                    "jax": jax.__version__}  # fmt: skip

    def tell(name: str, found: object) -> None:
        report[name] = found
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        bundle = sj.load(folder)
        for rows in args.rows:
            tell(f"rows_{rows}", throughput(bundle, rows, args.rounds))
        tell("savings", savings(bundle))
        tell("prefixes", prefixes(bundle))
    trained = sj.load(args.model)
    prompt = np.asarray(trained.tokenizer.encode("Return a list of the files in a directory, and "))
    for name, settings in (("greedy", GREEDY), ("sampled", sj.GenerationConfig(max_new_tokens=128))):
        tell(f"drafts_{name}", drafting(trained, settings, prompt))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

